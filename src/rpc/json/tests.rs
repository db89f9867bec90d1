use serde_json::json;

use super::*;

fn object(json: Json) -> Struct {
    to_proto_unbounded(json).unwrap()
}

/// Builds an object with this number of nested levels.
fn nested(levels: usize) -> Json {
    (1..levels).fold(json!({}), |inner, _| json!({ "a": inner }))
}

#[test]
fn json_survives_the_wire() {
    let json = json!({"a": 1, "b": [null, true, "x", {"c": 1.5}], "d": {}});
    let sent = to_proto(json.clone()).unwrap();
    assert_eq!(from_proto("f", sent, 100).unwrap(), json);
}

#[test]
fn values_that_json_does_not_have_are_refused_by_their_path() {
    let value = |kind| Value { kind: Some(kind) };
    let list = ListValue { values: vec![value(Kind::NumberValue(f64::NAN))] };
    let fields = [("a".to_string(), value(Kind::ListValue(list)))].into();
    let error = from_proto("f", Struct { fields }, 100).unwrap_err();
    assert_eq!(error.to_string(), "`f.a[0]` must be a finite number");
    let error = from_proto("f", object(json!({"a": {"b": "\0"}})), 100).unwrap_err();
    assert_eq!(error.to_string(), "`f.a.b` must not contain a NUL character");
}

#[test]
fn depth_is_bounded_and_the_place_is_named() {
    assert!(from_proto("f", object(nested(MAX_LEVELS)), MAX_BYTES).is_ok());
    let error = from_proto("f", object(nested(MAX_LEVELS + 1)), MAX_BYTES).unwrap_err();
    let path = format!("f{}", ".a".repeat(MAX_LEVELS));
    let problem = "must not be nested deeper than 20 levels";
    assert_eq!(error.to_string(), format!("`{path}` {problem}"));
    // Lists count as objects do.
    let lists = |levels| (1..levels).fold(json!([]), |inner, _| json!([inner]));
    assert!(from_proto("f", object(json!({"a": lists(MAX_LEVELS - 1)})), MAX_BYTES).is_ok());
    assert!(from_proto("f", object(json!({"a": lists(MAX_LEVELS)})), MAX_BYTES).is_err());
}

#[test]
fn a_long_path_is_shortened() {
    let mut deep = json!({ "k".repeat(1_000): nested(MAX_LEVELS) });
    deep["b"] = json!(1);
    let error = from_proto("f", object(deep), MAX_BYTES).unwrap_err();
    assert!(error.to_string().len() < 300, "{error}");
}

#[test]
fn the_length_is_that_of_the_text() {
    let mut random = fastrand::Rng::with_seed(5);
    for _ in 0..500 {
        let json = json!({ "r": any(&mut random, 4), "s": any(&mut random, 3) });
        let length = json.to_string().len();
        let sent = || object(json.clone());
        // A small object may be larger encoded than as text.
        if sent().encoded_len() <= max_encoded_len(length) {
            assert_eq!(from_proto("f", sent(), length).unwrap(), json);
        }
        assert!(from_proto("f", sent(), length - 1).is_err(), "{json}");
        let (estimated, exact) = (encoded_len(&json), sent().encoded_len());
        assert!(estimated.abs_diff(exact) <= exact / 2 + 12, "{json}");
    }
}

fn any(random: &mut fastrand::Rng, levels: u32) -> Json {
    let text = |random: &mut fastrand::Rng| -> String {
        let length = random.usize(..12);
        (0..length)
            .map(|_| *random.choice(['a', '"', '\\', '\n', '\u{1}', '\u{7f}', 'ü', '雪', '/', '\u{c}'].iter()).unwrap())
            .collect()
    };
    match random.u32(..if levels == 0 { 5 } else { 7 }) {
        0 => Json::Null,
        1 => json!(random.bool()),
        2 => json!(random.i32(..)),
        3 => json!(random.f64() * 1e20),
        4 => json!(text(random)),
        5 => (0..random.u32(..5)).map(|_| any(random, levels - 1)).collect(),
        _ => {
            let entries = (0..random.u32(..5)).map(|_| (text(random), any(random, levels - 1)));
            Json::Object(entries.collect::<Vec<_>>().into_iter().collect())
        }
    }
}

#[test]
fn stored_objects_that_cannot_be_delivered_are_replaced() {
    assert_eq!(delivery_problem(&nested(MAX_LEVELS)), None);
    let deep = to_proto(nested(MAX_LEVELS + 1)).unwrap();
    assert_eq!(deep, object(json!({ OMITTED_KEY: "nested deeper than 20 levels" })));
    let large = to_proto(json!({ "a": "x".repeat(2 << 20) })).unwrap();
    assert!(large.fields.contains_key(OMITTED_KEY));
    // The largest accepted object.
    let largest = json!({ "a": "x".repeat(MAX_BYTES - 8) });
    assert!(from_proto("f", to_proto(largest).unwrap(), MAX_BYTES).is_ok());
}
