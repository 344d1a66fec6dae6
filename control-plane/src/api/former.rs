//! Methods by their former names. `AccessService` held what now has a service for each noun; its names are answered for one
//! version more, as if the new ones had been called.

use http::uri::{PathAndQuery, Uri};
use tonic::body::Body;

use super::methods;

const FORMER: &str = "/muster.v1.AccessService/";

/// The services that have the methods of the former one.
const SERVICES: [&str; 6] = [
    "ApprovalService",
    "AuthorityService",
    "GrantService",
    "PolicyService",
    "PrincipalService",
    "TokenService",
];

/// A request as it would be if it had been made by the new name of its method. Whatever judges and records calls comes
/// after this, so it knows the new name only.
pub(crate) fn under_its_new_name(mut request: http::Request<Body>) -> http::Request<Body> {
    if let Some(path) = new_path(request.uri().path()) {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.path_and_query = Some(path);
        *request.uri_mut() = Uri::from_parts(parts).expect("only its path has changed");
    }
    request
}

fn new_path(path: &str) -> Option<PathAndQuery> {
    let name = path.strip_prefix(FORMER)?;
    let mut paths = SERVICES
        .map(|service| format!("/muster.v1.{service}/{name}"))
        .into_iter();
    paths.find(|path| methods::of(path).is_some())?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_former_name_has_one_new_one() {
        let former = methods::tests::deprecated();
        assert_eq!(former.len(), 25);
        for name in former {
            let path = format!("/{name}");
            let name = path.strip_prefix(FORMER).unwrap();
            let new: Vec<_> = SERVICES
                .into_iter()
                .map(|service| format!("/muster.v1.{service}/{name}"))
                .filter(|path| methods::of(path).is_some())
                .collect();
            assert_eq!(new.len(), 1, "{name}");
            assert_eq!(new_path(&path).unwrap(), *new[0]);
        }
        for path in [
            "/muster.v1.AccessService/RunJob",
            "/muster.v1.AccessService/Nothing",
            "/muster.v1.AccessService/",
            "/muster.v1.TokenService/ListTokens",
        ] {
            assert_eq!(new_path(path), None, "{path}");
        }
    }

    #[test]
    fn nothing_but_the_path_of_a_request_changes() {
        let by = |path: &str| {
            let request = http::Request::post(path).header("te", "trailers");
            under_its_new_name(request.body(Body::empty()).unwrap())
        };
        let request = by("https://plane:7443/muster.v1.AccessService/GetCaller");
        assert_eq!(
            request.uri(),
            "https://plane:7443/muster.v1.PrincipalService/GetCaller"
        );
        assert_eq!(request.headers()["te"], "trailers");
        let request = by("/muster.v1.HostService/ListHosts");
        assert_eq!(request.uri(), "/muster.v1.HostService/ListHosts");
    }
}
