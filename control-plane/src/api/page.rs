//! Page tokens: where the next page begins, bound to the query and the caller that asked for the first.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use muster_proto::v1::Reason;
use tonic::Status;

use crate::wire::status;

/// Bytes of the digest that binds a token to its query.
const DIGEST: usize = 8;

/// What a page token is bound to.
pub(crate) struct Query([u8; DIGEST]);

impl Query {
    /// The query is the method, the principal and the filters.
    pub(crate) fn new(parts: &[&str]) -> Self {
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        let digest = context.finish();
        Self(
            digest.as_ref()[..DIGEST]
                .try_into()
                .expect("a digest has 32 bytes"),
        )
    }

    /// The token of a page that begins at `place`.
    pub(crate) fn token(&self, place: &str) -> String {
        let mut bytes = self.0.to_vec();
        bytes.extend_from_slice(place.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// A token of another room, bound to this query.
    pub(crate) fn bind(&self, token: &str) -> String {
        format!("{}.{token}", URL_SAFE_NO_PAD.encode(self.0))
    }

    /// The token that was bound to this query; an empty one is bound to any.
    pub(crate) fn unbind<'a>(&self, bound: &'a str) -> Option<&'a str> {
        if bound.is_empty() {
            return Some(bound);
        }
        let (digest, token) = bound.split_once('.')?;
        (digest == URL_SAFE_NO_PAD.encode(self.0)).then_some(token)
    }

    /// Where the page begins; `None` for the first.
    pub(crate) fn place(&self, token: &str) -> Result<Option<String>, Status> {
        if token.is_empty() {
            return Ok(None);
        }
        let place = URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| {
            let (digest, place) = bytes.split_first_chunk::<DIGEST>()?;
            (*digest == self.0).then(|| String::from_utf8(place.to_vec()).ok())?
        });
        match place {
            Some(place) => Ok(Some(place)),
            None => Err(status::refuse(
                Reason::PageTokenInvalid,
                "page_token: it is malformed, or belongs to another query; begin without one",
            )),
        }
    }
}

/// The size of a page: the default for 0, and never more than the limit.
pub(crate) fn size(asked: i32, default: usize, limit: usize) -> Result<usize, Status> {
    match usize::try_from(asked) {
        Ok(0) => Ok(default),
        Ok(size) => Ok(size.min(limit)),
        Err(_) => Err(status::invalid("page_size", "is negative")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_serves_its_own_query_only() {
        let query = Query::new(&["ListHosts", "operator/ada", "env=prod"]);
        let token = query.token("web-7");
        assert_eq!(query.place(&token).unwrap().as_deref(), Some("web-7"));
        assert_eq!(query.place("").unwrap(), None);
        for other in [
            Query::new(&["ListHosts", "operator/eve", "env=prod"]),
            Query::new(&["ListHosts", "operator/ad", "aenv=prod"]),
        ] {
            assert!(other.place(&token).is_err());
        }
        assert_eq!(query.unbind(&query.bind("there")), Some("there"));
        assert_eq!(query.unbind(""), Some(""));
        let other = Query::new(&["ListHosts", "operator/eve", "env=prod"]);
        assert_eq!(other.unbind(&query.bind("there")), None);
        assert_eq!(query.unbind("there"), None);
        assert!(query.place("!!").is_err());
        assert!(query.place("AAAA").is_err());
    }

    #[test]
    fn pages_have_a_size_and_a_limit() {
        assert_eq!(size(0, 50, 100).unwrap(), 50);
        assert_eq!(size(7, 50, 100).unwrap(), 7);
        assert_eq!(size(1000, 50, 100).unwrap(), 100);
        assert!(size(-1, 50, 100).is_err());
    }
}
