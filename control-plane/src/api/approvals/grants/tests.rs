use tonic_types::StatusExt as _;

use super::*;
use crate::times;

fn request() -> RequestGrantRequest {
    RequestGrantRequest {
        reason: "the deploy needs it".into(),
        selector: "env=dev".into(),
        mode: v1::Mode::Edit.into(),
        request_id: "r-1".into(),
        ..RequestGrantRequest::default()
    }
}

#[test]
fn a_grant_is_for_work_on_hosts_and_for_a_while() {
    let plain = terms(&request()).unwrap();
    assert_eq!(plain.actions, ["command.run"]);
    for grantable in ["file.read", "job.input", "job.cancel"] {
        let mut request = request();
        request.actions = vec![grantable.to_owned(), "job.create".to_owned()];
        let terms = terms(&request).unwrap();
        assert_eq!(terms.actions.len(), 2, "as they were asked for: {terms:?}");
    }
    assert_eq!(plain.ttl, 3_600_000);
    let changes: [fn(&mut RequestGrantRequest); 9] = [
        |request| request.request_id = String::new(),
        |request| request.reason = String::new(),
        |request| request.reason = "x".repeat(TEXT_MAX + 1),
        |request| request.selector = "os=linux".into(),
        |request| request.mode = v1::Mode::Disabled.into(),
        |request| request.actions = vec!["policy.write".into()],
        |request| request.actions = vec!["file.write".into()],
        |request| request.ttl = Some(times::duration(TTL_MAX + Duration::from_secs(1))),
        |request| request.ttl = Some(times::duration(Duration::ZERO)),
    ];
    for change in changes {
        let mut request = request();
        change(&mut request);
        let refused = terms(&request).unwrap_err();
        assert!(refused.get_details_error_info().is_some(), "{request:?}");
    }
}

#[test]
fn a_grant_is_known_by_its_terms() {
    let of = |change: fn(&mut Terms)| {
        let mut terms = terms(&request()).unwrap();
        change(&mut terms);
        grant_digest("ai/claude", &terms)
    };
    let plain = of(|_| {});
    assert_eq!(plain, of(|_| {}));
    assert_ne!(plain, of(|terms| terms.mode = Mode::Unrestricted));
    assert_ne!(plain, of(|terms| terms.selector = "all".into()));
    assert_ne!(plain, of(|terms| terms.ttl += 1));
    assert_ne!(plain, of(|terms| terms.actions.push("job.input".into())));
}
