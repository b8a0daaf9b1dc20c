//! Making pools, and what opens them.

use crate::support::{Firn, shape};
use std::os::unix::fs::PermissionsExt;

/// A pool under the password `correct horse`, and its recovery key.
fn with_password() -> (Firn, String) {
    let mut firn = Firn::new();
    firn.write("secret", "correct horse\n");
    firn.set("FIRN_PASSWORD_FILE", "secret");
    let made = firn.json("init pool");
    let recovery = made["recovery_key"].as_str().unwrap().to_owned();
    assert_eq!(shape(&made), "domain: string\nlocation: string\npool: string\nrecovery_key: string");
    (firn, recovery)
}

fn slots(firn: &Firn) -> Vec<(String, String)> {
    let list = firn.json("key list");
    let slots = list["slots"].as_array().unwrap();
    slots.iter().map(|slot| (slot["slot"].as_str().unwrap().into(), slot["kind"].as_str().unwrap().into())).collect()
}

#[test]
fn a_pool_is_made_once_and_only_in_an_empty_folder() {
    let firn = Firn::new();
    let told = firn.ok("init a/b/pool --no-password");
    assert!(told.contains("Made the pool a/b/pool") && told.contains("key stands in clear"), "{told}");
    // What whoever can read may read is for its owner alone, unless he says otherwise.
    assert_eq!(firn.path("a/b/pool").metadata().unwrap().permissions().mode() & 0o777, 0o700);
    firn.fails(1, "init a/b/pool --no-password", &["there is a pool here already"]);
    firn.fails(1, "init a --no-password", &["this folder is not empty", "name a folder that is empty"]);
    firn.write("file", "x");
    firn.fails(1, "init file --no-password", &["file: this is a file, not a folder"]);
    firn.fails(2, "init file/pool --no-password", &["file/pool: part of this path is a file"]);
    firn.fails(2, "init c --key-file file", &["1 bytes, too few to be a key"]);
    firn.fails(2, "init c --no-password --key-file file", &["cannot be used with"]);
    firn.fails(2, "init c --no-password --same-keys-as a/b/pool", &["cannot be used with"]);
    firn.write("empty", "");
    firn.fails(2, "init c --password-file empty", &["empty: the password file has no password"]);
    firn.fails(2, "init c --password-file /dev/zero", &["/dev/zero", "too much"]);
    firn.write("binary", [0xFF, 0xFE, b'\n']);
    firn.fails(2, "init c --password-file binary", &["not UTF-8"]);
    firn.fails(4, "init c --password-file nothing", &["nothing: read: No such file"]);
    assert!(!firn.exists("c"), "a refused init leaves nothing");
}

#[test]
fn a_password_a_recovery_key_and_an_exported_key_each_open_the_pool() {
    let (firn, recovery) = with_password();
    firn.write("a.raw", [1; 5000]);
    firn.ok("snap web1 a.raw");
    firn.write("wrong", "correct horse \n");
    firn.fails(5, "list --password-file wrong", &["the password is wrong", "recovery key"]);
    // As people type it.
    firn.write("paper", format!(" {} \r\n", recovery.to_lowercase().replace('-', " ")));
    firn.ok("list --password-file paper");
    let mistyped = if recovery.starts_with('7') { "8" } else { "7" };
    firn.write("paper", format!("{mistyped}{}", &recovery[1..]));
    firn.fails(5, "list --password-file paper", &["wrong"]);
    let exported = firn.json("key export master.key");
    assert_eq!(shape(&exported), "file: string");
    assert_eq!(firn.path("master.key").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    firn.ok("list --key-file master.key");
    firn.fails(1, "key export master.key", &["master.key"]);
    // When all slots are lost it still opens the pool.
    std::fs::remove_dir_all(firn.path("pool/key")).unwrap();
    firn.fails(5, "list", &["pool"]);
    assert!(firn.ok("list --key-file master.key").contains("web1"));
    let other = Firn::with_pool();
    std::fs::copy(firn.path("master.key"), other.path("master.key")).unwrap();
    std::fs::remove_dir_all(other.path("pool/key")).unwrap();
    other.fails(5, "list --key-file master.key", &["master"]);
}

#[test]
fn keys_are_added_and_removed() {
    let (firn, _) = with_password();
    firn.write("second", "battery staple");
    let added = firn.json("key add --new-password-file second --label bob");
    assert_eq!(shape(&added), "slot: string");
    firn.ok("list");
    firn.ok("list --password-file second");
    let list = firn.json("key list");
    assert_eq!(
        shape(&list),
        "slots[].created: string\nslots[].kind: string\nslots[].label: string\nslots[].scope: string\nslots[].slot: string"
    );
    let table = firn.ok("key list");
    assert!(table.contains("recovery-key") && table.contains("bob"), "{table}");
    // The first password goes; enough of the beginning names it.
    let first = slots(&firn).into_iter().find(|(_, kind)| kind == "password").unwrap().0;
    firn.fails(2, &format!("key remove {}", &first[..3]), &["not enough", "firn key list"]);
    firn.fails(4, "key remove ffffffffffff", &["there is no key slot"]);
    let removed = firn.json(&format!("key remove {}", first[..13].to_uppercase()));
    assert_eq!(removed["removed"], first.as_str());
    firn.fails(5, "list", &["the password is wrong"]);
    firn.ok("list --password-file second");
    assert_eq!(slots(&firn).len(), 2);
    // The last that opens everything stays.
    let [recovery, second]: [_; 2] = slots(&firn).try_into().unwrap();
    let recovery = if recovery.1 == "recovery-key" { recovery } else { second.clone() };
    firn.ok(&format!("key remove {} --password-file second", recovery.0));
    let last = slots(&firn)[0].0.clone();
    firn.fails(2, &format!("key remove {last} --password-file second"), &["the last key", "firn key add"]);
    // Another recovery key, made later, opens it as the first did.
    let paper = firn.json("key add --recovery --label safe --password-file second");
    assert_eq!(shape(&paper), "recovery_key: string\nslot: string");
    firn.write("paper", paper["recovery_key"].as_str().unwrap());
    firn.ok("list --password-file paper");
}

#[test]
fn a_key_file_is_made_when_there_is_none_and_only_its_owner_reads_it() {
    let firn = Firn::new();
    let run = firn.run("init pool --key-file the.key");
    assert!(run.code == 0 && run.stderr.contains("made the key file the.key"), "{}", run.stderr);
    assert_eq!(firn.path("the.key").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(firn.read("the.key").len(), 32);
    firn.ok("list --key-file the.key");
    firn.write("other.key", [9; 32]);
    firn.fails(5, "list --key-file other.key", &["the key file does not open this pool"]);
    firn.fails(5, "list", &["needs a password, key file or recovery key"]);
    firn.write("secret", "x");
    firn.fails(5, "list --password-file secret", &["this pool has no password", "--key-file"]);
    firn.fails(4, "list --key-file nothing.key", &["nothing.key"]);
    firn.ok("key add --key-file the.key --new-key-file third.key --label target");
    firn.ok("list --key-file third.key");
}

#[test]
fn a_key_to_the_structure_checks_but_does_not_read() {
    let firn = Firn::new();
    firn.write("a.raw", [1; 50_000]);
    firn.ok("init pool --key-file full.key");
    firn.ok("snap web1 a.raw --key-file full.key");
    firn.ok("key add --key-file full.key --new-key-file part.key --structure-only");
    assert!(firn.ok("list --key-file part.key").contains("web1"));
    firn.ok("verify --key-file part.key");
    assert_eq!(firn.json("pool info --key-file part.key")["key_scope"], "structure");
    for arguments in [
        "restore web1 out.raw",
        "snap web1",
        "snap web2 a.raw",
        "verify --read-data",
        "key export master.key",
        "pool rebuild-index",
        "init pool2 --same-keys-as pool",
        "key add --new-key-file more.key",
    ] {
        let part = "this key opens the structure of the pool only";
        firn.fails(5, &format!("{arguments} --key-file part.key"), &[part, "full scope"]);
    }
    assert!(!firn.exists("out.raw") && !firn.exists("master.key") && !firn.exists("pool2"));
    firn.assert_tidy("");
    // The same file may open two slots, and the one that gives more counts, whichever was there first.
    firn.ok("key add --key-file full.key --new-key-file part.key");
    firn.ok("restore web1 out.raw --key-file part.key");
    assert_eq!(firn.read("out.raw"), [1; 50_000]);
}

#[test]
fn a_pool_with_the_keys_of_another_is_opened_by_what_opens_that() {
    let (firn, recovery) = with_password();
    let made = firn.json("init pool2 --same-keys-as pool");
    assert!(made["recovery_key"].is_null());
    firn.write("paper", recovery);
    let info = |pool: &str| firn.json(&format!("pool info --pool {pool} --password-file paper"));
    let (first, second) = (info("pool"), info("pool2"));
    assert_eq!(first["domain"], second["domain"]);
    assert_ne!(first["pool"], second["pool"]);
    firn.fails(4, "init pool3 --same-keys-as nowhere", &["nowhere"]);
}

#[test]
fn the_command_line_goes_before_the_environment() {
    let (mut firn, _) = with_password();
    firn.ok("key add --new-key-file the.key");
    // FIRN_PASSWORD_FILE is set all the time.
    firn.write("wrong", "wrong");
    firn.fails(5, "list --password-file wrong", &["the password is wrong"]);
    firn.ok("list --key-file the.key");
    firn.ok("init open --no-password");
    firn.ok("list --pool open");
    firn.set("FIRN_KEY_FILE", "the.key");
    firn.fails(2, "list", &["both FIRN_PASSWORD_FILE and FIRN_KEY_FILE are set", "unset one"]);
    firn.ok("list --key-file the.key");
    firn.set("FIRN_PASSWORD_FILE", "");
    firn.ok("list");
    firn.set("FIRN_KEY_FILE", "");
    firn.fails(5, "list", &["needs a password"]);
    firn.set("FIRN_PASSWORD", "correct horse");
    firn.ok("list");
    firn.fails(5, "list --password-file wrong", &["the password is wrong"]);
    firn.set("FIRN_PASSWORD", "");
    firn.fails(5, "list", &["needs a password"]);
}

#[test]
fn the_keyring_keeps_the_key_until_it_is_told_to_forget_it() {
    let (mut firn, _) = with_password();
    firn.ok("login --for 5m");
    firn.set("FIRN_PASSWORD_FILE", "");
    firn.ok("list");
    // Also for a pool of the same keys, and for no other.
    firn.ok("init pool2 --same-keys-as pool");
    firn.ok("list --pool pool2");
    firn.write("other", "another password");
    firn.ok("init pool3 --password-file other");
    firn.fails(5, "list --pool pool3", &["needs a password"]);
    // What is given goes first, and is not made up for by what is kept.
    firn.fails(5, "list --password-file other", &["the password is wrong"]);
    assert_eq!(firn.json("logout")["forgotten"], true);
    firn.fails(5, "list", &["needs a password"]);
    assert_eq!(firn.json("logout")["forgotten"], false);
    firn.fails(2, "login --for 9d", &["at most a week"]);
}
