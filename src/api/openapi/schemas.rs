//! The shapes of the JSON that goes in and out.

use serde_json::json;
use utoipa::openapi::schema::{
    AdditionalProperties, AnyOfBuilder, ArrayBuilder, ComponentsBuilder, Object, ObjectBuilder,
    OneOfBuilder, Schema, SchemaType, Type,
};
use utoipa::openapi::{Ref, RefOr};

use super::super::batch;
use super::super::problem::Kind;
use super::super::settings::{BATCH_OPS_MAX, Limits};
use super::{ETAGS_PATTERN, SPAN_PATTERN, VERSION_PATTERN};

/// A string.
pub(super) fn string() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

/// A whole number.
pub(super) fn integer(from: i64, to: i64) -> ObjectBuilder {
    let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(from as f64));
    // JSON's readers hold numbers as floats; a bound beyond 2^53 would say something else.
    if to < 1 << 53 { number.maximum(Some(to as f64)) } else { number }
}

/// Any object.
pub(super) fn object() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Object)
}

/// Anything at all.
pub(super) fn any(about: &str) -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(SchemaType::AnyValue).description(Some(about)).into()
}

fn nullable(of: Type) -> ObjectBuilder {
    ObjectBuilder::new().schema_type([of, Type::Null].into_iter().collect::<SchemaType>())
}

fn version() -> ObjectBuilder {
    string().pattern(Some("^[0-9]{1,20}$")).description(Some("The version, as in ETag"))
}

fn ttl_ms() -> ObjectBuilder {
    let about = "Milliseconds left to live; null: for ever";
    nullable(Type::Integer).minimum(Some(0.0)).description(Some(about))
}

fn stale_ms() -> ObjectBuilder {
    let about = "Of a read: for how long its copy has been out of touch with the primary, if it is";
    integer(0, i64::MAX).description(Some(about))
}

/// The document of `format=json`; or a stored JSON value, which may be anything.
pub(super) fn entry_or_any() -> RefOr<Schema> {
    let entry = Ref::from_schema_name("Entry");
    AnyOfBuilder::new().item(entry).item(any("A value stored as application/json")).into()
}

/// All named shapes.
pub(super) fn components(components: ComponentsBuilder, limits: Limits) -> ComponentsBuilder {
    components
        .schema("Problem", problem())
        .schema("Entry", entry())
        .schema("Page", page())
        .schema("Deleted", deleted())
        .schema("Batch", list_of("ops", operations(limits)))
        .schema("Results", list_of("results", result()))
        .schema("Welcome", welcome())
}

fn problem() -> ObjectBuilder {
    let urns = Kind::ALL.map(Kind::urn);
    object()
        .description(Some("RFC 9457"))
        .property("type", string().enum_values(Some(urns)))
        .property("title", string())
        .property("status", integer(400, 599))
        .property("detail", string().description(Some("What, where, and how to mend it")))
        .property("outcome", string().enum_values(Some(["not-applied", "unknown"])))
        .property("retryable", ObjectBuilder::new().schema_type(Type::Boolean))
        .property("version", version())
        .property("stale_ms", stale_ms())
        .required("type")
        .required("title")
        .required("status")
        .required("detail")
        .required("outcome")
        .required("retryable")
}

fn entry() -> ObjectBuilder {
    valued(keyed(object()))
        .property("version", version())
        .property("ttl_ms", ttl_ms())
        .required("value")
        .required("encoding")
        .required("content_type")
        .required("version")
        .required("ttl_ms")
}

fn keyed(object: ObjectBuilder) -> ObjectBuilder {
    object
        .property("key", string().description(Some("Where the key is UTF-8")))
        .property("key_base64", string().description(Some("Where it is not")))
}

fn valued(object: ObjectBuilder) -> ObjectBuilder {
    object
        .property("value", string())
        .property("encoding", string().enum_values(Some(["utf8", "base64"])))
        .property("content_type", nullable(Type::String))
}

fn page() -> ObjectBuilder {
    let listed = valued(keyed(object()))
        .property("size", integer(0, i64::MAX).description(Some("The value's bytes")))
        .property("ttl_ms", ttl_ms())
        .property("version", version())
        .required("size")
        .required("ttl_ms")
        .required("version");
    let cursor = nullable(Type::String).description(Some("For the next page; null: the end"));
    object()
        .property("keys", ArrayBuilder::new().items(listed))
        .property("cursor", cursor)
        .required("keys")
        .required("cursor")
}

fn deleted() -> ObjectBuilder {
    object().property("deleted", integer(0, i64::MAX)).required("deleted")
}

fn welcome() -> ObjectBuilder {
    ["name", "version", "api", "docs"]
        .into_iter()
        .fold(object(), |object, name| object.property(name, string()).required(name))
}

fn list_of(name: &str, items: impl Into<RefOr<Schema>>) -> ObjectBuilder {
    let list = ArrayBuilder::new().items(items.into()).max_items(Some(BATCH_OPS_MAX));
    object()
        .property(name, list)
        .required(name)
        .additional_properties(Some(AdditionalProperties::FreeForm(false)))
}

/// Every operation of a batch, with its key and value as text or in base64.
fn operations(limits: Limits) -> OneOfBuilder {
    let mut all = OneOfBuilder::new();
    for op in batch::OPS {
        let values: &[Option<&str>] =
            if op == "put" { &[Some("value"), Some("value_base64")] } else { &[None] };
        for key in ["key", "key_base64"] {
            for value in values {
                all = all.item(operation(op, key, *value, limits));
            }
        }
    }
    all
}

/// Base64 of no bytes, or with padding.
const BASE64_PATTERN: &str =
    "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$";

fn operation(op: &str, key: &str, value: Option<&str>, limits: Limits) -> Object {
    let bytes = |field: &str, min: usize, max: usize| match field.ends_with("_base64") {
        // Four characters stand for three bytes.
        true => {
            let string = string().pattern(Some(BASE64_PATTERN));
            string.min_length(Some(min * 4)).max_length(Some(max.div_ceil(3) * 4))
        }
        false => string().min_length(Some(min)).max_length(Some(max)),
    };
    let mut object = object()
        .title(Some(match value {
            Some(value) => format!("{op} {key} {value}"),
            None => format!("{op} {key}"),
        }))
        .additional_properties(Some(AdditionalProperties::FreeForm(false)))
        .property("op", string().enum_values(Some([op])))
        .property(key, bytes(key, 1, limits.key_bytes))
        .required("op")
        .required(key);
    if let Some(value) = value {
        let about = "At most max_value_bytes";
        let bytes = bytes(value, 0, limits.value_bytes).description(Some(about));
        let content_type = nullable(Type::String);
        let content_type = content_type.pattern(Some("^([!-~]([ -~]{0,253}[!-~])?)?$"));
        object =
            object.property(value, bytes).required(value).property("content_type", content_type);
    }
    if op != "get" {
        let etags =
            || nullable(Type::String).pattern(Some(format!("{ETAGS_PATTERN}|{VERSION_PATTERN}")));
        object = object.property("if_match", etags()).property("if_none_match", etags());
    }
    if op == "incr" {
        let by = nullable(Type::Integer);
        let bound = 1_i64 << 53;
        object = object
            .property("by", by.minimum(Some(-(bound as f64))).maximum(Some(bound as f64)))
            .property("ttl", ttl(&format!("^({SPAN_PATTERN})$")));
    }
    if op == "put" || op == "touch" {
        object = object.property("ttl", ttl(&format!("^({SPAN_PATTERN}|keep)$")));
    }
    // `null` stands for a field that is left out, of whatever operation.
    let mut object = object.build();
    for field in batch::FIELDS {
        let null = || Schema::from(ObjectBuilder::new().schema_type(Type::Null)).into();
        object.properties.entry(field.to_owned()).or_insert_with(null);
    }
    object
}

fn ttl(pattern: &str) -> OneOfBuilder {
    OneOfBuilder::new()
        .item(string().pattern(Some(pattern)))
        .item(integer(1, 3_153_600_000).description(Some("Seconds")))
        .item(ObjectBuilder::new().schema_type(Type::Null))
}

fn result() -> ObjectBuilder {
    let about = "200, 201, 202 or 204 where it succeeded; else a Problem, with its own members";
    object()
        .property("status", integer(200, 599).description(Some(about)))
        .property("version", version())
        .property("value", string().description(Some("Of get, where it is UTF-8; of incr")))
        .property("value_base64", string().description(Some("Of get, where it is not UTF-8")))
        .property("content_type", nullable(Type::String))
        .property("ttl_ms", ttl_ms())
        .property("stale_ms", stale_ms())
        .property("acks", string().pattern(Some("^[0-9]+/[0-9]+$")))
        .property("type", string())
        .property("title", string())
        .property("detail", string())
        .property("outcome", string().enum_values(Some(["not-applied", "unknown"])))
        .property("retryable", ObjectBuilder::new().schema_type(Type::Boolean))
        .required("status")
        .examples([json!({"status": 201, "version": "252135476404158464", "acks": "1/1"})])
}
