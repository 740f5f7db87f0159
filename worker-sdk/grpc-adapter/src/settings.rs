//! How an adapter deals with its targets: encryption, compression, the size of messages, and what
//! they offer where they do not say it themselves. Made by who starts the adapter, read by each
//! [`crate::Line`].

use std::sync::Arc;

use tonic::codec::CompressionEncoding;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use zex_spec::MAX_BODY_BYTES;

use crate::reflection::Catalogue;

/// See the fields. The default asks nothing of anybody.
#[derive(Debug, Clone)]
pub struct Settings {
    /// For `https://` targets.
    pub tls: Tls,
    /// How requests are compressed, as long as the service takes them so. Answers may be compressed
    /// in either way at any time.
    pub compression: Option<Compression>,
    /// Largest request and answer, in bytes; at most what travels through the mesh.
    pub max_message_bytes: usize,
    /// What the targets offer, if they are not to be asked.
    pub catalogue: Option<Arc<Catalogue>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tls: Tls::default(),
            compression: None,
            max_message_bytes: MAX_BODY_BYTES,
            catalogue: None,
        }
    }
}

/// Who is believed to be the service, and who the adapter is to it. All of it is PEM.
#[derive(Clone, Default)]
pub struct Tls {
    /// The authorities; those of the system if there are none.
    pub authorities: Option<Vec<u8>>,
    /// The adapter's own certificate and key, where the service asks for them.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name in the service's certificate, if it is not the host's.
    pub name: Option<String>,
}

/// Keys are not shown.
impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Tls {
    pub(crate) fn config(&self) -> ClientTlsConfig {
        let mut config = match &self.authorities {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((certificate, key)) = &self.identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        match &self.name {
            Some(name) => config.domain_name(name),
            None => config,
        }
    }
}

/// Ways to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Every gRPC library has it.
    Gzip,
    /// Faster.
    Zstd,
}

impl Compression {
    pub(crate) fn encoding(self) -> CompressionEncoding {
        match self {
            Self::Gzip => CompressionEncoding::Gzip,
            Self::Zstd => CompressionEncoding::Zstd,
        }
    }

    /// As gRPC's headers name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}
