//! sketch
use super::settings::Limits;
use bytes::Bytes;
pub(super) const PATH: &str = "/openapi.json";
pub(super) fn document(_limits: Limits) -> Bytes {
    Bytes::from_static(b"{}")
}
