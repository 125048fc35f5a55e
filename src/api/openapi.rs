//! The OpenAPI 3.1 document, made from the same tables and limits that requests are served by.
//!
//! It describes this node as it is configured now: keys and values as long as it takes them, a
//! token if it wants one. A test holds its routes and those served equal.

mod schemas;

use bytes::Bytes;
use hyper::header::{ALLOW, ETAG, RETRY_AFTER, WWW_AUTHENTICATE};
use utoipa::openapi::header::Header;
use utoipa::openapi::path::{
    Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ComponentsBuilder, Schema};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Content, HttpMethod, InfoBuilder, License, OpenApi, OpenApiBuilder, PathItem, PathsBuilder,
    Ref, RefOr, Required, Response as OpenApiResponse,
};

use self::schemas::{any, integer, string};
use super::answer::{ACKS, STALE, TTL};
use super::params::IDEMPOTENCY_KEY_BYTES_MAX;
use super::problem::{self, Kind};
use super::settings::{BATCH_OPS_MAX, KEYED_BATCH_OPS_MAX, Limits};
use super::{batch, listing};

pub(super) const PATH: &str = "/openapi.json";

const KEY_PATH: &str = "/v1/kv/{key}";
const TOKEN: &str = "token";

const ETAG_PATTERN: &str = "^\"[0-9]{1,20}\"$";
const ETAGS_PATTERN: &str = "^(\\*|(W/)?\"[!#-~]{0,24}\"(, (W/)?\"[!#-~]{0,24}\")*)$";
const VERSION_PATTERN: &str = "^(\"[1-9][0-9]{0,18}\"|[1-9][0-9]{0,18})$";
const SPAN_PATTERN: &str = "[1-9][0-9]{0,11}ms|[1-9][0-9]{0,8}s?|[1-9][0-9]{0,6}m|\
     [1-9][0-9]{0,4}h|[1-9][0-9]{0,3}d";

/// The document, for a node with these limits, and with tokens or without.
pub(super) fn document(limits: Limits, needs_token: bool) -> Bytes {
    let document = serde_json::to_vec(&describe(limits, needs_token));
    Bytes::from(document.expect("a document of plain strings and maps always serializes"))
}

fn describe(limits: Limits, needs_token: bool) -> OpenApi {
    let ops = Operations { limits, needs_token };
    let read = |operation: Operation| {
        let mut head = operation.clone();
        head.operation_id = head.operation_id.map(|id| format!("{id}_head"));
        for response in head.responses.responses.values_mut() {
            if let RefOr::T(response) = response {
                response.content.clear();
            }
        }
        let mut item = PathItem::new(HttpMethod::Get, operation);
        item.head = Some(head);
        item
    };
    let mut key = read(ops.get());
    key.put = Some(ops.put());
    key.delete = Some(ops.delete());
    key.post = Some(ops.post());
    let mut many = read(ops.list());
    many.delete = Some(ops.delete_prefix());
    let paths = PathsBuilder::new()
        .path(KEY_PATH, key)
        .path(listing::PATH, many)
        .path(batch::PATH, PathItem::new(HttpMethod::Post, ops.batch()))
        .path(PATH, read(ops.document()))
        .path("/", read(ops.welcome()));
    let info = InfoBuilder::new()
        .title("AegisKV client API")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(ABOUT))
        .license(Some(License::new("Apache-2.0")));
    let components = schemas::components(ComponentsBuilder::new(), limits)
        .security_scheme(TOKEN, SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    OpenApiBuilder::new()
        .info(info.build())
        .paths(paths.build())
        .components(Some(components.build()))
        .build()
}

const ABOUT: &str = "Keys and values over HTTP/1.1 and HTTP/2. Every answer carries \
    X-Content-Type-Options: nosniff and Content-Security-Policy: sandbox; every refusal is \
    application/problem+json (RFC 9457). Any node serves any key. A method that an address does \
    not know is answered 405 with Allow; a head that is no HTTP, too long or contradicts itself \
    is answered 400, 414 or 431 without a body, a Transfer-Encoding beside chunked 501, and the \
    connection is closed.";

struct Operations {
    limits: Limits,
    needs_token: bool,
}

/// What may go wrong with any request that needs the data.
const ALWAYS: [Kind; 4] =
    [Kind::Malformed, Kind::RateLimited, Kind::NotImplemented, Kind::Unavailable];
/// What may go wrong with a write besides.
const WRITES: [Kind; 3] = [Kind::Timeout, Kind::OutcomeUnknown, Kind::TooLarge];

impl Operations {
    fn get(&self) -> Operation {
        let format = string().enum_values(Some(["raw", "json"]));
        let raw = response("The value: its bytes and its stored type, or as JSON")
            .content("*/*", Content::new(Some(binary("The value, as it was stored"))))
            .content("application/json", Content::new(Some(schemas::entry_or_any())))
            .header(TTL.as_str(), ttl_header())
            .header(STALE.as_str(), stale_header())
            .header(ETAG.as_str(), etag_header("The value's version"));
        let known = response("The reader has this version already (If-None-Match)")
            .header(ETAG.as_str(), etag_header("The value's version"))
            .header(STALE.as_str(), stale_header())
            .header(TTL.as_str(), ttl_header());
        let operation = operation("get", "Read a value")
            .parameter(self.key())
            .parameter(query("format", format, "As it is, or described in JSON"))
            .parameter(consistency())
            .parameter(query("min_version", pattern(VERSION_PATTERN), "See at least this write"))
            .parameter(header("If-Match", ETAGS_PATTERN, "Answer 412 unless it matches"))
            .parameter(header("If-None-Match", ETAGS_PATTERN, "Answer 304 if it matches"))
            .response("200", raw)
            .response("304", known);
        let more = [Kind::Absent, Kind::ConditionFailed, Kind::TooLarge, Kind::OutcomeUnknown];
        self.finish(operation, &more)
    }

    fn put(&self) -> Operation {
        let value = RequestBodyBuilder::new()
            .description(Some(format!(
                "The value, stored as it is under its Content-Type; at most {} bytes \
                 (max_value_bytes). Content-Type application/x-www-form-urlencoded counts as unset; \
                 Content-Encoding is refused.",
                self.limits.value_bytes
            )))
            .required(Some(Required::False))
            .content("application/octet-stream", Content::new(Some(binary("Any bytes"))));
        let operation = operation("put", "Store a value")
            .parameter(self.key())
            .parameter(query("ttl", pattern(&format!("^({SPAN_PATTERN}|keep)$")), TTL_ABOUT))
            .parameter(consistency())
            .parameter(if_match())
            .parameter(if_none_match())
            .parameter(idempotency_key())
            .request_body(Some(value.build()))
            .response("201", written("Stored where no live value was"))
            .response("202", accepted())
            .response("204", written("Stored over a live value"));
        let more = [Kind::ConditionFailed, Kind::Full, Kind::UnsupportedMediaType];
        self.finish(operation, &[&WRITES[..], &more].concat())
    }

    fn delete(&self) -> Operation {
        let operation = operation("delete", "Delete a key, whether or not it is there")
            .parameter(self.key())
            .parameter(consistency())
            .parameter(if_match())
            .parameter(if_none_match())
            .parameter(idempotency_key())
            .response("202", accepted())
            .response("204", written("It is not there any more"));
        self.finish(operation, &[&WRITES[..], &[Kind::ConditionFailed, Kind::Full]].concat())
    }

    fn post(&self) -> Operation {
        let number = string().pattern(Some("^-?[0-9]{1,19}$"));
        let number = Content::new(Some(number.description(Some("The counter's new value"))));
        let op = string().enum_values(Some(["incr", "touch"]));
        let by = string().pattern(Some("^-?[0-9]{1,18}$"));
        let sum = written("Added (op=incr)").content("text/plain; charset=utf-8", number);
        let operation = operation("change", "Add to an integer (incr), or renew a TTL (touch)")
            .parameter(self.key())
            .parameter(
                ParameterBuilder::from(query("op", op, "What to do")).required(Required::True),
            )
            .parameter(query("by", by, "What to add, 1 if absent; with op=incr only"))
            .parameter(query("ttl", pattern(&format!("^({SPAN_PATTERN}|keep)$")), TTL_POST_ABOUT))
            .parameter(consistency())
            .parameter(if_match())
            .parameter(if_none_match())
            .parameter(idempotency_key())
            .response("200", sum)
            // One status for both: with the sum as text for incr, empty for touch.
            .response("202", accepted())
            .response("204", written("The TTL is renewed (op=touch)"));
        let more = [Kind::Absent, Kind::NotAnInteger, Kind::ConditionFailed, Kind::Full];
        self.finish(operation, &[&WRITES[..], &more].concat())
    }

    fn list(&self) -> Operation {
        let limit = integer(1, listing::LIMIT_MAX as i64);
        let limit = limit.default(Some(listing::LIMIT_DEFAULT.into()));
        let page = response("One page")
            .content("application/json", reference("Page"))
            .header(STALE.as_str(), stale_header());
        let operation = operation("list", "List keys by prefix, in no particular order")
            .parameter(query("prefix", string(), "What the keys begin with; absent: all"))
            .parameter(query("limit", limit, "Keys on the page at most; a page may hold fewer"))
            .parameter(query("cursor", string(), "Where the last page left off"))
            .parameter(query("values", flag(), "With their values"))
            .response("200", page);
        self.finish(operation, &[])
    }

    fn delete_prefix(&self) -> Operation {
        let counted = |about: &str| {
            let acks = Header::new(string().pattern(Some("^[0-9]+/[0-9]+$")));
            response(about)
                .content("application/json", reference("Deleted"))
                .header(ACKS.as_str(), acks)
        };
        let prefix = query("prefix", string().min_length(Some(1)), "What the keys begin with");
        let operation = operation("delete_prefix", "Delete all keys under a prefix")
            .parameter(ParameterBuilder::from(prefix).required(Required::True))
            .parameter(query("dry_run", flag(), "Only count them"))
            .parameter(consistency())
            .parameter(idempotency_key())
            .response("200", counted("How many keys were deleted, or would be"))
            .response("202", counted("How many keys are being deleted (consistency=async)"));
        self.finish(operation, &[&WRITES[..], &[Kind::Full]].concat())
    }

    fn batch(&self) -> Operation {
        let lines = |about: &str| Content::new(Some(string().description(Some(about))));
        let body = RequestBodyBuilder::new()
            .description(Some(format!(
                "One document of at most {BATCH_OPS_MAX} operations ({KEYED_BATCH_OPS_MAX} under an \
                 Idempotency-Key) and {} bytes; or any number of operations as lines, each like \
                 an element of ops. Operations start in order; nothing is atomic across keys.",
                self.limits.batch_bytes()
            )))
            .required(Some(Required::True))
            .content("application/json", reference("Batch"))
            .content("application/x-ndjson", lines("One operation a line"));
        let answered = response("A result for each operation, in the same order, as they come")
            .content("application/json", reference("Results"))
            .content("application/x-ndjson", lines("One result a line, like one of results"));
        let operation = operation("batch", "Carry out many operations")
            .parameter(consistency())
            .parameter(idempotency_key())
            .request_body(Some(body.build()))
            .response("200", answered);
        let more = [Kind::Timeout, Kind::TooLarge, Kind::UnsupportedMediaType];
        self.finish(operation, &more)
    }

    fn document(&self) -> Operation {
        let content = Content::new(Some(schemas::object()));
        let response = response("This document").content("application/json", content);
        let operation = operation("openapi", "Describe the API").response("200", response);
        self.open(operation)
    }

    fn welcome(&self) -> Operation {
        let response =
            response("Name and version").content("application/json", reference("Welcome"));
        let operation = operation("welcome", "Say who answers").response("200", response);
        self.open(operation)
    }

    /// Adds what may go wrong with what anybody may ask, token or not.
    fn open(&self, operation: OperationBuilder) -> Operation {
        let operation = operation
            .response("400", refusal(Kind::Malformed))
            .response("429", refusal(Kind::RateLimited));
        match self.needs_token {
            true => operation.build(),
            false => operation.response("403", refusal(Kind::Forbidden)).build(),
        }
    }

    /// Adds what may go wrong, and what it takes to be let in.
    fn finish(&self, mut operation: OperationBuilder, more: &[Kind]) -> Operation {
        for kind in ALWAYS.iter().chain(more) {
            operation = operation.response(kind.status().as_str(), refusal(*kind));
        }
        if self.needs_token {
            operation = operation
                .response("401", refusal(Kind::Unauthorized))
                .security(SecurityRequirement::new::<_, [&str; 0], &str>(TOKEN, []));
        }
        // By a token's rights where one is asked for, else by the page that a request comes from.
        operation.response("403", refusal(Kind::Forbidden)).build()
    }

    fn key(&self) -> Parameter {
        let schema = string().min_length(Some(1)).max_length(Some(self.limits.key_bytes));
        let about = format!(
            "All that follows /v1/kv/, percent-decoded once and never cleaned as a path; 1 to {} \
             bytes (max_key_bytes)",
            self.limits.key_bytes
        );
        ParameterBuilder::new()
            .name("key")
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .schema(Some(schema))
            .description(Some(about))
            .build()
    }
}

const TTL_ABOUT: &str = "How long it lives: 500ms, 30s, 15m, 2h, 7d, or whole seconds, up to 100 \
     years; keep: as long as the present value; absent: for ever";
const TTL_POST_ABOUT: &str = "With op=touch: how long it lives from now on (absent: for ever). \
     With op=incr: how long it lives if this creates it; not keep";

fn operation(id: &str, summary: &str) -> OperationBuilder {
    OperationBuilder::new().operation_id(Some(id)).summary(Some(summary))
}

fn response(about: &str) -> ResponseBuilder {
    ResponseBuilder::new().description(about)
}

fn reference(name: &str) -> Content {
    Content::new(Some(Ref::from_schema_name(name)))
}

fn pattern(pattern: &str) -> utoipa::openapi::ObjectBuilder {
    string().pattern(Some(pattern))
}

fn flag() -> utoipa::openapi::ObjectBuilder {
    string().enum_values(Some(["1", "0", "true", "false"]))
}

fn binary(about: &str) -> RefOr<Schema> {
    any(about)
}

fn query(name: &str, schema: impl Into<RefOr<Schema>>, about: &str) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Query)
        .schema(Some(schema))
        .description(Some(about))
        .build()
}

fn header(name: &str, expression: &str, about: &str) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .schema(Some(pattern(expression)))
        .description(Some(about))
        .build()
}

fn consistency() -> Parameter {
    let words = ["async", "one", "quorum", "all", "linearizable"];
    let about = "How many copies must have answered; absent: as configured";
    query("consistency", string().enum_values(Some(words)), about)
}

fn if_match() -> Parameter {
    let about = "Only if the live value has one of these versions, or any with *; not with \
                 If-None-Match";
    header("If-Match", ETAGS_PATTERN, about)
}

fn if_none_match() -> Parameter {
    let about = "Only if there is no live value with one of these versions, or none at all with *; \
                 not with If-Match";
    header("If-None-Match", ETAGS_PATTERN, about)
}

fn idempotency_key() -> Parameter {
    let about = "Makes a retry safe for some minutes: it gets the first answer again. Another \
                 request under the same key is refused with 400";
    let schema = string().min_length(Some(1)).max_length(Some(IDEMPOTENCY_KEY_BYTES_MAX));
    ParameterBuilder::from(query("Idempotency-Key", schema, about))
        .parameter_in(ParameterIn::Header)
        .build()
}

fn etag_header(about: &str) -> Header {
    let mut header = Header::new(pattern(ETAG_PATTERN));
    header.description = Some(about.to_owned());
    header
}

fn ttl_header() -> Header {
    let mut header = Header::new(integer(0, i64::MAX));
    header.description = Some("Seconds left to live, rounded up; absent: for ever".to_owned());
    header
}

fn stale_header() -> Header {
    let mut header = Header::new(pattern("^[0-9]+s$"));
    let about =
        "For how long a copy that was read has been out of touch with its primary, if it is";
    header.description = Some(about.to_owned());
    header
}

fn written(about: &str) -> ResponseBuilder {
    let mut acks = Header::new(pattern("^[0-9]+/[0-9]+$"));
    acks.description = Some("Copies that had it, of how many".to_owned());
    response(about)
        .header(ETAG.as_str(), etag_header("The write's version"))
        .header(ACKS.as_str(), acks)
}

fn accepted() -> ResponseBuilder {
    response("Taken, but not waited for (consistency=async)")
        .header(ETAG.as_str(), etag_header("The write's version"))
}

fn refusal(kind: Kind) -> OpenApiResponse {
    let mut refusal = response(kind.title()).content(problem::MEDIA_TYPE, reference("Problem"));
    let text = || Header::new(string());
    refusal = match kind {
        Kind::Unauthorized => refusal.header(WWW_AUTHENTICATE.as_str(), text()),
        Kind::MethodNotAllowed => refusal.header(ALLOW.as_str(), text()),
        Kind::ConditionFailed => {
            refusal.header(ETAG.as_str(), etag_header("The live value's version, if there is one"))
        }
        Kind::RateLimited | Kind::Unavailable => {
            refusal.header(RETRY_AFTER.as_str(), Header::new(integer(0, i64::MAX)))
        }
        _ => refusal,
    };
    Response::from(refusal)
}
