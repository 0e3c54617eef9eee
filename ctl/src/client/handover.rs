//! Requests by which one daemon takes over from another.

use hyper::{Method, body::Bytes};

use super::{Client, ClientError};
use crate::api::{HANDOVER, Handover, HandoverSpec};

impl Client {
    /// `POST /v1/handover`: stand still and be ready to end.
    pub async fn handover_begin(&self) -> Result<Handover, ClientError> {
        let pid = std::process::id();
        self.post("/v1/handover", &HandoverSpec { protocol: HANDOVER, pid }).await
    }

    /// `POST /v1/handover/end`: leave everything and end.
    pub async fn handover_end(&self) -> Result<(), ClientError> {
        self.request(Method::POST, "/v1/handover/end", Bytes::new()).await.map(drop)
    }

    /// `DELETE /v1/handover`: go on.
    pub async fn handover_call_off(&self) -> Result<(), ClientError> {
        self.delete("/v1/handover").await
    }
}
