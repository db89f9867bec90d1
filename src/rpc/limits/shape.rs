//! Decoded size of a message, calculated from its bytes before decoding.
//!
//! Two bytes can become a submessage of hundreds. Without a bound, a request of 4 MiB could take
//! gigabytes.

use std::collections::HashMap;

use prost::Message;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

#[cfg(test)]
mod tests;

/// Maximum nesting of submessages; prost refuses deeper messages.
const LEVELS: usize = 100;

/// Size of a `String`, a `Vec` or a map, in bytes.
const HANDLE: u64 = 24;

/// Memory per byte of list or map elements: a growing collection doubles its capacity.
const GROWTH: u64 = 2;

/// Layouts of all messages, and the input message of each method.
#[derive(Debug, Default)]
pub struct Shapes {
    messages: Vec<Shape>,
    /// Index of the input message by path of the method.
    inputs: HashMap<String, usize>,
}

/// Layout of a decoded message.
#[derive(Debug, Default)]
struct Shape {
    /// Size of the message without elements and text, in bytes.
    size: u64,
    /// Fields by number, in ascending order.
    fields: Vec<(u32, Field)>,
}

#[derive(Debug, Clone, Copy)]
struct Field {
    is_repeated: bool,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Number, boolean or enum.
    Number {
        /// Decoded size in bytes.
        size: u64,
        /// Minimum encoded size in bytes.
        least: u64,
    },
    /// Text or bytes.
    Text,
    /// Message with this index.
    Message(usize),
}

/// Failure to calculate a decoded size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// The decoded size exceeds the limit.
    TooMuch,
    /// The bytes are not a message. The decoder fails as well, after about the same work.
    Malformed,
}

impl Shapes {
    /// Creates the layouts of encoded descriptors.
    pub fn new(descriptors: &[&[u8]]) -> Self {
        let files: Vec<_> = descriptors
            .iter()
            .filter_map(|set| FileDescriptorSet::decode(*set).ok())
            .flat_map(|set| set.file)
            .collect();
        let mut described = Vec::new();
        for file in &files {
            let prefix = format!(".{}", file.package());
            describe(&prefix, &file.message_type, &mut described);
        }
        let names: HashMap<_, _> = described
            .iter()
            .enumerate()
            .map(|(at, (name, _))| (name.clone(), at))
            .collect();
        let mut messages: Vec<Shape> = described
            .iter()
            .map(|(_, message)| Shape {
                size: 0,
                fields: fields(message, &names),
            })
            .collect();
        let sizes: Vec<_> = (0..messages.len())
            .map(|at| size(at, &described, &messages, 0))
            .collect();
        for (message, size) in messages.iter_mut().zip(sizes) {
            message.size = size;
        }
        let mut inputs = HashMap::new();
        for file in &files {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    if let Some(at) = names.get(method.input_type()) {
                        inputs.insert(path, *at);
                    }
                }
            }
        }
        Self { messages, inputs }
    }

    /// Returns the index of a method's input message; none for an unknown method.
    pub fn input(&self, path: &str) -> Option<usize> {
        self.inputs.get(path).copied()
    }

    /// Calculates the decoded size of a message in bytes. Fails above `max_bytes`.
    pub fn memory(&self, message: usize, bytes: &[u8], most: u64) -> Result<u64, Unknown> {
        let size = self.messages.get(message).map_or(0, |shape| shape.size);
        let mut left = Left(most);
        left.take(size)?;
        self.walk(message, bytes, &mut left, 0)?;
        Ok(most - left.0)
    }

    fn walk(
        &self,
        message: usize,
        bytes: &[u8],
        left: &mut Left,
        level: usize,
    ) -> Result<(), Unknown> {
        let shape = self.messages.get(message).ok_or(Unknown::Malformed)?;
        if level > LEVELS {
            return Err(Unknown::Malformed);
        }
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let (number, wire) = tag(&mut bytes)?;
            let field = shape.fields.binary_search_by_key(&number, |field| field.0);
            let field = field.ok().map(|at| shape.fields[at].1);
            if wire != Wire::Bytes {
                skip(&mut bytes, number, wire, level)?;
                if let Some(Field {
                    is_repeated: true,
                    kind: Kind::Number { size, .. },
                }) = field
                {
                    left.take(size * GROWTH)?;
                }
                continue;
            }
            let content = content(&mut bytes)?;
            let Some(field) = field else { continue };
            let each = |size| if field.is_repeated { size * GROWTH } else { 0 };
            match field.kind {
                // Packed numbers.
                Kind::Number { size, least } => {
                    left.take(each(size) * content.len() as u64 / least)?;
                }
                Kind::Text => left.take(each(HANDLE) + content.len() as u64)?,
                Kind::Message(of) => {
                    left.take(each(self.messages.get(of).map_or(0, |shape| shape.size)))?;
                    self.walk(of, content, left, level + 1)?;
                }
            }
        }
        Ok(())
    }
}

/// Remaining memory of a message, in bytes.
struct Left(u64);

impl Left {
    fn take(&mut self, bytes: u64) -> Result<(), Unknown> {
        self.0 = self.0.checked_sub(bytes).ok_or(Unknown::TooMuch)?;
        Ok(())
    }
}

/// Collects messages and nested messages with their full names.
fn describe<'a>(
    prefix: &str,
    messages: &'a [DescriptorProto],
    described: &mut Vec<(String, &'a DescriptorProto)>,
) {
    for message in messages {
        let name = format!("{prefix}.{}", message.name());
        describe(&name, &message.nested_type, described);
        described.push((name, message));
    }
}

fn fields(message: &DescriptorProto, names: &HashMap<String, usize>) -> Vec<(u32, Field)> {
    let field = |field: &FieldDescriptorProto| {
        let kind = match field.r#type() {
            Type::String | Type::Bytes => Kind::Text,
            Type::Message | Type::Group => Kind::Message(*names.get(field.type_name())?),
            Type::Double | Type::Fixed64 | Type::Sfixed64 => Kind::Number { size: 8, least: 8 },
            Type::Float | Type::Fixed32 | Type::Sfixed32 => Kind::Number { size: 4, least: 4 },
            Type::Int64 | Type::Uint64 | Type::Sint64 => Kind::Number { size: 8, least: 1 },
            Type::Bool => Kind::Number { size: 1, least: 1 },
            Type::Int32 | Type::Uint32 | Type::Sint32 | Type::Enum => {
                Kind::Number { size: 4, least: 1 }
            }
        };
        let is_repeated = field.label() == Label::Repeated;
        Some((
            u32::try_from(field.number()).ok()?,
            Field { is_repeated, kind },
        ))
    };
    let mut fields: Vec<_> = message.field.iter().filter_map(field).collect();
    fields.sort_by_key(|field| field.0);
    fields
}

/// Calculates an upper bound of a message's size without elements and text, in bytes. Optional
/// fields include a presence flag.
fn size(
    at: usize,
    described: &[(String, &DescriptorProto)],
    messages: &[Shape],
    level: usize,
) -> u64 {
    if level > LEVELS {
        // A recursive message is stored behind a pointer.
        return 8;
    }
    let (Some((_, message)), Some(shape)) = (described.get(at), messages.get(at)) else {
        return 0;
    };
    // A `oneof` takes the size of its largest field.
    let mut choices: HashMap<i32, u64> = HashMap::new();
    let mut total = 0;
    for (number, field) in &shape.fields {
        let one = match field.kind {
            _ if field.is_repeated => HANDLE,
            Kind::Number { size, .. } => size * 2,
            Kind::Text => HANDLE,
            Kind::Message(of) => size(of, described, messages, level + 1) + 8,
        };
        let description = message.field.iter();
        let mut description = description.filter(|of| u32::try_from(of.number()) == Ok(*number));
        let choice = description
            .next()
            .filter(|of| !of.proto3_optional())
            .and_then(|of| of.oneof_index);
        match choice {
            Some(choice) => {
                let largest = choices.entry(choice).or_default();
                *largest = one.max(*largest);
            }
            None => total += one,
        }
    }
    total + choices.values().map(|largest| largest + 8).sum::<u64>()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Varint,
    Fixed(usize),
    Bytes,
    GroupStart,
    GroupEnd,
}

fn tag(bytes: &mut &[u8]) -> Result<(u32, Wire), Unknown> {
    let tag = u32::try_from(varint(bytes)?).map_err(|_| Unknown::Malformed)?;
    let wire = match tag & 7 {
        0 => Wire::Varint,
        1 => Wire::Fixed(8),
        2 => Wire::Bytes,
        3 => Wire::GroupStart,
        4 => Wire::GroupEnd,
        5 => Wire::Fixed(4),
        _ => return Err(Unknown::Malformed),
    };
    Ok((tag >> 3, wire))
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Unknown> {
    let mut value = 0;
    for at in 0..10 {
        let (byte, rest) = bytes.split_first().ok_or(Unknown::Malformed)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << (7 * at);
        if *byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Unknown::Malformed)
}

fn content<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Unknown> {
    let length = usize::try_from(varint(bytes)?).map_err(|_| Unknown::Malformed)?;
    let (content, rest) = bytes.split_at_checked(length).ok_or(Unknown::Malformed)?;
    *bytes = rest;
    Ok(content)
}

fn skip(bytes: &mut &[u8], number: u32, wire: Wire, level: usize) -> Result<(), Unknown> {
    match wire {
        Wire::Varint => {
            varint(bytes)?;
        }
        Wire::Fixed(size) => *bytes = bytes.get(size..).ok_or(Unknown::Malformed)?,
        Wire::Bytes => {
            content(bytes)?;
        }
        Wire::GroupStart if level <= LEVELS => loop {
            let (inner, wire) = tag(bytes)?;
            if wire == Wire::GroupEnd && inner == number {
                break;
            }
            skip(bytes, inner, wire, level + 1)?;
        },
        Wire::GroupStart | Wire::GroupEnd => return Err(Unknown::Malformed),
    }
    Ok(())
}
