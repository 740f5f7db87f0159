//! TLS to the database: for a URL that says `sslmode=require`, and then with its certificate and its
//! name checked, which is more than `libpq` does for that word.

use std::error::Error as _;
use std::io;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres_rustls::MakeRustlsConnect;

/// What encrypts connections; it is not asked where nobody wants it.
///
/// # Errors
/// Why nobody could vouch for a database.
pub(super) fn connector(
    wanted: bool,
    authorities: Option<&[u8]>,
) -> Result<MakeRustlsConnect, String> {
    let mut roots = RootCertStore::empty();
    if wanted {
        let certificates = match authorities {
            Some(pem) => CertificateDer::pem_slice_iter(pem)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| format!("the authorities are not PEM: {error}"))?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        roots.add_parsable_certificates(certificates);
        if roots.is_empty() {
            let why = match authorities {
                Some(_) => "--store-ca has no certificate of an authority, as PEM",
                None => {
                    "the system has no authorities who could vouch for the database; --store-ca \
                     names a file of them"
                }
            };
            return Err(why.to_owned());
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

/// Whether a connection came to nothing because the two do not agree, and not because it broke.
pub(super) fn refused(error: &tokio_postgres::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(broken) = error.downcast_ref::<io::Error>() {
            // What rustls says is in it, and is no source of it.
            return broken.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
        }
        cause = error.source();
    }
    // There is no TLS at the other end, or no name that could be checked.
    error.to_string().contains("TLS handshake")
}
