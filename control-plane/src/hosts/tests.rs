use std::time::Duration;

use muster_proto::ids::HostId;
use tempfile::TempDir;

use super::{edit::EditError, *};
use crate::{
    model::{Facts, Labels, NewHost},
    selector::Selector,
    store::{Batch, Store},
};

async fn inventory(directory: &TempDir) -> Inventory {
    let store = Store::open(directory.path()).await.unwrap();
    let limits = PresenceLimits {
        suspect_after: Duration::from_secs(25),
        offline_after: Duration::from_secs(45),
    };
    Inventory::load(store, limits).await.unwrap()
}

fn id(seed: u8) -> HostId {
    HostId::from_bytes(&[seed; 32])
}

async fn add(inventory: &Inventory, seed: u8, name: &str, labels: &[(&str, &str)]) {
    let host = NewHost {
        name: name.to_owned(),
        labels: labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        certificate_expire_time: 1,
    };
    inventory.add(id(seed), host, Batch::new()).await.unwrap();
}

fn names(inventory: &Inventory, selector: &str) -> Vec<String> {
    inventory
        .select(&Selector::parse(selector).unwrap())
        .unwrap()
        .iter()
        .map(|host| host.name.clone())
        .collect()
}

#[tokio::test]
async fn what_was_written_is_found_again_after_a_restart() {
    let directory = TempDir::new().unwrap();
    {
        let inventory = inventory(&directory).await;
        add(&inventory, 1, "web-1", &[("env", "prod")]).await;
        add(&inventory, 2, "web-2", &[]).await;
        let first = inventory
            .set_instruction(id(1), "be gentle", "v0", "operator/ada")
            .await
            .unwrap();
        assert_eq!(first.etag(), "v1");
        let facts = Facts {
            os: "linux".into(),
            ..Facts::default()
        };
        assert!(inventory.show_facts(id(1), facts.clone()));
        assert!(!inventory.show_facts(id(1), facts));
        inventory.write_facts(id(1)).await.unwrap();
        inventory
            .lock(id(2), "operator/ada", "stolen")
            .await
            .unwrap();
    }
    let inventory = inventory(&directory).await;
    assert_eq!(names(&inventory, "all"), ["web-1", "web-2"]);
    assert_eq!(names(&inventory, "env=prod,os=linux"), ["web-1"]);
    let host = inventory.find("web-1").unwrap();
    assert_eq!(host.current_instruction().unwrap().text, "be gentle");
    assert_eq!(host.presence, Presence::Offline);
    assert_eq!(inventory.bar(id(2)), Some(Bar::Locked(id(2))));
    assert_eq!(
        inventory.find("web-2").unwrap().lock.as_ref().unwrap().note,
        "stolen"
    );
}

#[tokio::test]
async fn a_list_of_names_must_exist_and_a_requirement_may_match_none() {
    let directory = TempDir::new().unwrap();
    let inventory = inventory(&directory).await;
    add(&inventory, 1, "b", &[]).await;
    add(&inventory, 2, "a", &[]).await;
    assert_eq!(names(&inventory, "b,a,b"), ["a", "b"]);
    assert_eq!(names(&inventory, &id(1).to_string()), ["b"]);
    assert!(names(&inventory, "env=prod").is_empty());
    let error = inventory
        .select(&Selector::parse("a,c").unwrap())
        .unwrap_err();
    assert!(matches!(error, SelectError::HostNotFound(name) if name == "c"));
}

#[tokio::test]
async fn an_old_etag_replaces_nothing() {
    let directory = TempDir::new().unwrap();
    let inventory = inventory(&directory).await;
    add(&inventory, 1, "a", &[]).await;
    let set =
        async |text: &str, etag: &str| inventory.set_instruction(id(1), text, etag, "ai/x").await;
    set("one", "v0").await.unwrap();
    set("two", "v1").await.unwrap();
    assert!(matches!(
        set("three", "v1").await,
        Err(EditError::EtagMismatch { .. })
    ));
    set("", "").await.unwrap();
    assert!(inventory.find("a").unwrap().current_instruction().is_none());
    let texts: Vec<_> = inventory
        .instructions(id(1), i64::MAX, 10)
        .await
        .unwrap()
        .into_iter()
        .map(|one| one.text)
        .collect();
    assert_eq!(texts, ["", "two", "one"]);
}

#[tokio::test]
async fn names_are_unique_and_ids_are_retired() {
    let directory = TempDir::new().unwrap();
    let inventory = inventory(&directory).await;
    add(&inventory, 1, "a", &[]).await;
    add(&inventory, 2, "b", &[]).await;
    assert_eq!(inventory.free_name("a"), "a-2");
    let rename = Edit {
        name: Some("a".into()),
        ..Edit::default()
    };
    assert!(matches!(
        inventory.update(id(2), rename, |_, _| true).await,
        Err(EditError::NameTaken(_))
    ));
    let taken = NewHost {
        name: "a".into(),
        labels: Labels::new(),
        certificate_expire_time: 0,
    };
    assert!(matches!(
        inventory.add(id(3), taken, Batch::new()).await,
        Err(EditError::NameTaken(_))
    ));
    let mut bars = inventory.bars();
    let before = *inventory.version().borrow();
    inventory.remove(id(1)).await.unwrap();
    assert_eq!(bars.recv().await.unwrap(), Bar::Removed(id(1)));
    assert_eq!(inventory.changed_since(before).2, [id(1)]);
    assert_eq!(inventory.bar(id(1)), Some(Bar::Removed(id(1))));
    add(&inventory, 4, "a", &[]).await;
}

#[tokio::test]
async fn presence_follows_the_connection() {
    let directory = TempDir::new().unwrap();
    let inventory = inventory(&directory).await;
    add(&inventory, 1, "a", &[]).await;
    let presence = || inventory.find("a").unwrap().presence;
    assert_eq!(presence(), Presence::Offline);
    inventory.attached(id(1));
    assert_eq!(presence(), Presence::Online);
    assert_eq!(names(&inventory, "presence=online"), ["a"]);
    let version = *inventory.version().borrow();
    inventory.heard(id(1));
    assert_eq!(
        *inventory.version().borrow(),
        version,
        "a heartbeat is no change"
    );
    inventory.detached(id(1), false);
    assert_eq!(presence(), Presence::Suspect);
    inventory.detached(id(1), true);
    assert_eq!(presence(), Presence::Offline);
}

#[tokio::test]
async fn labels_change_as_a_set_or_one_by_one() {
    let directory = TempDir::new().unwrap();
    let inventory = inventory(&directory).await;
    add(&inventory, 1, "a", &[("env", "dev"), ("role", "web")]).await;
    let edit = Edit {
        label: vec![("env".into(), Some("prod".into())), ("role".into(), None)],
        ..Edit::default()
    };
    let host = inventory.update(id(1), edit, |_, _| true).await.unwrap();
    assert_eq!(host.labels, Labels::from([("env".into(), "prod".into())]));
    let bad = Edit {
        label: vec![("os".into(), Some("x".into()))],
        ..Edit::default()
    };
    assert!(matches!(
        inventory.update(id(1), bad, |_, _| true).await,
        Err(EditError::Name(_))
    ));
}
