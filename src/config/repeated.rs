//! JSON as it is written, with what is lost when it is read: a name that stands twice in an object.
//! The last one would win, and hide a slip.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value as Json};

/// A value, and the first name that stands twice in an object of it, at any depth.
pub(super) struct Written {
    pub(super) json: Json,
    pub(super) twice: Option<String>,
}

impl Written {
    fn plain(json: impl Into<Json>) -> Self {
        Self { json: json.into(), twice: None }
    }
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Written;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_unit<E: Error>(self) -> Result<Written, E> {
                Ok(Written::plain(Json::Null))
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Written, E> {
                Ok(Written::plain(value))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Written, E> {
                Ok(Written::plain(value))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Written, E> {
                Ok(Written::plain(value))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Written, E> {
                Ok(Written::plain(Number::from_f64(value).map_or(Json::Null, Json::Number)))
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Written, E> {
                Ok(Written::plain(value))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Written, A::Error> {
                let (mut list, mut twice) = (Vec::new(), None);
                while let Some(one) = seq.next_element::<Written>()? {
                    list.push(one.json);
                    twice = twice.or(one.twice);
                }
                Ok(Written { json: Json::Array(list), twice })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Written, A::Error> {
                let (mut object, mut twice) = (Map::new(), None);
                while let Some((name, one)) = map.next_entry::<String, Written>()? {
                    twice = twice.or(one.twice);
                    if object.insert(name.clone(), one.json).is_some() {
                        twice = twice.or(Some(name));
                    }
                }
                Ok(Written { json: Json::Object(object), twice })
            }
        }

        deserializer.deserialize_any(Any)
    }
}
