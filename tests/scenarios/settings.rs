//! Settings, and mistakes in them.

use std::fs;

use muster_tests::fleet::Fleet;

#[tokio::test]
async fn all_mistakes_in_settings_are_reported_together_before_anything_starts() {
    let fleet = Fleet::start().await;
    let data_dir = fleet.directory().join("fresh");
    fs::create_dir(&data_dir).unwrap();
    let file = "[control-plane]\ncertificate-lifetime = \"soon\"\nno-such-key = 1\n";
    fs::write(data_dir.join("config.toml"), file).unwrap();
    let ended = fleet
        .muster(&["control-plane"])
        .env("MUSTER_DATA_DIR", &data_dir)
        .env("MUSTER_LISTEN", "nonsense")
        .run(&fleet.logs())
        .await;
    assert_eq!(ended.code(), 64, "{}", ended.stderr);
    for mistake in ["MUSTER_LISTEN", "certificate-lifetime", "no-such-key"] {
        assert!(
            ended.stderr.contains(mistake),
            "no {mistake} in:\n{}",
            ended.stderr
        );
    }
    let left: Vec<_> = fs::read_dir(&data_dir).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[tokio::test]
async fn a_flag_beats_the_environment_which_beats_the_file() {
    let fleet = Fleet::start().await;
    let data_dir = fleet.directory().join("fresh");
    fs::create_dir(&data_dir).unwrap();
    let write = |lifetime: &str| {
        let text = format!("[control-plane]\ncertificate-lifetime = \"{lifetime}\"\n");
        fs::write(data_dir.join("config.toml"), text).unwrap();
    };
    // Each is wrong in its own way, and only the one that counts is looked at.
    let start = |args: &[&str]| fleet.muster(args).env("MUSTER_DATA_DIR", &data_dir);
    write("from-file");
    let ended = start(&["control-plane"]).run(&fleet.logs()).await;
    assert!(ended.stderr.contains("from-file"), "{}", ended.stderr);
    let flag = ["control-plane", "--certificate-lifetime", "from-flag"];
    let ended = start(&flag).run(&fleet.logs()).await;
    assert!(ended.stderr.contains("from-flag"), "{}", ended.stderr);
}
