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
const MAX_LEVELS: usize = 100;

/// Size of a `String`, a `Vec` or a map, in bytes.
const HANDLE_BYTES: u64 = 24;

/// Memory per byte of list or map elements: a growing collection doubles its capacity.
const GROWTH_FACTOR: u64 = 2;

/// Layouts of all messages, and the input message of each method.
#[derive(Debug, Default)]
pub struct MessageLayouts {
    messages: Vec<MessageLayout>,
    /// Index of the input message by path of the method.
    inputs: HashMap<String, usize>,
}

/// Layout of a decoded message.
#[derive(Debug, Default)]
struct MessageLayout {
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
        min_wire_bytes: u64,
    },
    /// Field of text or bytes.
    Text,
    /// Message with this index.
    Message(usize),
}

/// Failure to calculate a decoded size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeError {
    /// The decoded size exceeds the limit.
    LimitExceeded,
    /// The bytes are not a message. The decoder fails as well, after about the same work.
    Malformed,
}

impl MessageLayouts {
    /// Creates the layouts of encoded descriptors.
    pub fn new(descriptors: &[&[u8]]) -> Self {
        let files: Vec<_> = descriptors
            .iter()
            .filter_map(|set| FileDescriptorSet::decode(*set).ok())
            .flat_map(|set| set.file)
            .collect();
        let mut descriptors = Vec::new();
        for file in &files {
            let prefix = format!(".{}", file.package());
            collect_messages(&prefix, &file.message_type, &mut descriptors);
        }
        let names: HashMap<_, _> =
            descriptors.iter().enumerate().map(|(index, (name, _))| (name.clone(), index)).collect();
        let mut messages: Vec<MessageLayout> =
            descriptors.iter().map(|(_, message)| MessageLayout { size: 0, fields: fields(message, &names) }).collect();
        let sizes: Vec<_> = (0..messages.len()).map(|index| size(index, &descriptors, &messages, 0)).collect();
        for (message, size) in messages.iter_mut().zip(sizes) {
            message.size = size;
        }
        let mut inputs = HashMap::new();
        for file in &files {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    if let Some(index) = names.get(method.input_type()) {
                        inputs.insert(path, *index);
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
    pub fn memory(&self, message: usize, bytes: &[u8], max_bytes: u64) -> Result<u64, SizeError> {
        let size = self.messages.get(message).map_or(0, |layout| layout.size);
        let mut budget = MemoryBudget(max_bytes);
        budget.take(size)?;
        self.walk(message, bytes, &mut budget, 0)?;
        Ok(max_bytes - budget.0)
    }

    fn walk(&self, message: usize, bytes: &[u8], budget: &mut MemoryBudget, level: usize) -> Result<(), SizeError> {
        let layout = self.messages.get(message).ok_or(SizeError::Malformed)?;
        if level > MAX_LEVELS {
            return Err(SizeError::Malformed);
        }
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let (number, wire) = tag(&mut bytes)?;
            let position = layout.fields.binary_search_by_key(&number, |field| field.0);
            let field = position.ok().map(|index| layout.fields[index].1);
            if wire != Wire::Bytes {
                skip(&mut bytes, number, wire, level)?;
                if let Some(Field { is_repeated: true, kind: Kind::Number { size, .. } }) = field {
                    budget.take(size * GROWTH_FACTOR)?;
                }
                continue;
            }
            let content = content(&mut bytes)?;
            let Some(field) = field else { continue };
            let each = |size| {
                if field.is_repeated { size * GROWTH_FACTOR } else { 0 }
            };
            match field.kind {
                // A packed list has one length for all numbers.
                Kind::Number { size, min_wire_bytes } => {
                    budget.take(each(size) * content.len() as u64 / min_wire_bytes)?;
                }
                Kind::Text => budget.take(each(HANDLE_BYTES) + content.len() as u64)?,
                Kind::Message(inner) => {
                    budget.take(each(self.messages.get(inner).map_or(0, |layout| layout.size)))?;
                    self.walk(inner, content, budget, level + 1)?;
                }
            }
        }
        Ok(())
    }
}

/// Remaining memory of a message, in bytes.
struct MemoryBudget(u64);

impl MemoryBudget {
    fn take(&mut self, bytes: u64) -> Result<(), SizeError> {
        self.0 = self.0.checked_sub(bytes).ok_or(SizeError::LimitExceeded)?;
        Ok(())
    }
}

/// Collects messages and nested messages with their full names.
fn collect_messages<'a>(
    prefix: &str,
    messages: &'a [DescriptorProto],
    descriptors: &mut Vec<(String, &'a DescriptorProto)>,
) {
    for message in messages {
        let name = format!("{prefix}.{}", message.name());
        collect_messages(&name, &message.nested_type, descriptors);
        descriptors.push((name, message));
    }
}

fn fields(message: &DescriptorProto, names: &HashMap<String, usize>) -> Vec<(u32, Field)> {
    let field = |field: &FieldDescriptorProto| {
        let kind = match field.r#type() {
            Type::String | Type::Bytes => Kind::Text,
            Type::Message | Type::Group => Kind::Message(*names.get(field.type_name())?),
            Type::Double | Type::Fixed64 | Type::Sfixed64 => Kind::Number { size: 8, min_wire_bytes: 8 },
            Type::Float | Type::Fixed32 | Type::Sfixed32 => Kind::Number { size: 4, min_wire_bytes: 4 },
            Type::Int64 | Type::Uint64 | Type::Sint64 => Kind::Number { size: 8, min_wire_bytes: 1 },
            Type::Bool => Kind::Number { size: 1, min_wire_bytes: 1 },
            Type::Int32 | Type::Uint32 | Type::Sint32 | Type::Enum => Kind::Number { size: 4, min_wire_bytes: 1 },
        };
        let is_repeated = field.label() == Label::Repeated;
        Some((u32::try_from(field.number()).ok()?, Field { is_repeated, kind }))
    };
    let mut fields: Vec<_> = message.field.iter().filter_map(field).collect();
    fields.sort_by_key(|field| field.0);
    fields
}

/// Calculates an upper bound of a message's size without elements and text, in bytes. Optional
/// fields include a presence flag.
fn size(index: usize, descriptors: &[(String, &DescriptorProto)], messages: &[MessageLayout], level: usize) -> u64 {
    if level > MAX_LEVELS {
        // A recursive message is stored behind a pointer.
        return 8;
    }
    let (Some((_, message)), Some(layout)) = (descriptors.get(index), messages.get(index)) else {
        return 0;
    };
    // A `oneof` takes the size of its largest field.
    let mut choices: HashMap<i32, u64> = HashMap::new();
    let mut total = 0;
    for (number, field) in &layout.fields {
        let field_size = match field.kind {
            _ if field.is_repeated => HANDLE_BYTES,
            Kind::Number { size, .. } => size * 2,
            Kind::Text => HANDLE_BYTES,
            Kind::Message(inner) => size(inner, descriptors, messages, level + 1) + 8,
        };
        let descriptor = message.field.iter().find(|field| u32::try_from(field.number()) == Ok(*number));
        let choice = descriptor.filter(|field| !field.proto3_optional()).and_then(|field| field.oneof_index);
        match choice {
            Some(choice) => {
                let largest = choices.entry(choice).or_default();
                *largest = field_size.max(*largest);
            }
            None => total += field_size,
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

fn tag(bytes: &mut &[u8]) -> Result<(u32, Wire), SizeError> {
    let tag = u32::try_from(varint(bytes)?).map_err(|_| SizeError::Malformed)?;
    let wire = match tag & 7 {
        0 => Wire::Varint,
        1 => Wire::Fixed(8),
        2 => Wire::Bytes,
        3 => Wire::GroupStart,
        4 => Wire::GroupEnd,
        5 => Wire::Fixed(4),
        _ => return Err(SizeError::Malformed),
    };
    Ok((tag >> 3, wire))
}

fn varint(bytes: &mut &[u8]) -> Result<u64, SizeError> {
    let mut value = 0;
    for index in 0..10 {
        let (byte, rest) = bytes.split_first().ok_or(SizeError::Malformed)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << (7 * index);
        if *byte < 0x80 {
            return Ok(value);
        }
    }
    Err(SizeError::Malformed)
}

fn content<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], SizeError> {
    let length = usize::try_from(varint(bytes)?).map_err(|_| SizeError::Malformed)?;
    let (content, rest) = bytes.split_at_checked(length).ok_or(SizeError::Malformed)?;
    *bytes = rest;
    Ok(content)
}

fn skip(bytes: &mut &[u8], number: u32, wire: Wire, level: usize) -> Result<(), SizeError> {
    match wire {
        Wire::Varint => {
            varint(bytes)?;
        }
        Wire::Fixed(size) => *bytes = bytes.get(size..).ok_or(SizeError::Malformed)?,
        Wire::Bytes => {
            content(bytes)?;
        }
        Wire::GroupStart if level <= MAX_LEVELS => loop {
            let (inner, wire) = tag(bytes)?;
            if wire == Wire::GroupEnd && inner == number {
                break;
            }
            skip(bytes, inner, wire, level + 1)?;
        },
        Wire::GroupStart | Wire::GroupEnd => return Err(SizeError::Malformed),
    }
    Ok(())
}
