//! What becomes of key files that others can read or change. Judged by the mode alone, so that it's the same for root.

use keystead_plugin_api::{Code, Severity};
use serde_json::json;

use crate::place::{Place, fixture, subject_of};

/// Modes, and what is said of them.
const EXPOSED: [(u32, &str); 4] = [
    (0o644, "everybody on this machine can read it (mode 0644)"),
    (0o604, "everybody on this machine can read it (mode 0604)"),
    (0o602, "everybody on this machine can change it (mode 0602)"),
    (0o620, "its group can change it (mode 0620)"),
];

#[test]
fn refuses_exposed_keys_by_default() {
    let place = Place::new();
    place.put("a.key", &fixture("p-256.pem"));
    for (mode, words) in EXPOSED {
        place.chmod("a.key", mode);
        assert!(place.served().is_empty(), "{mode:o}");
        let finding = place.finding_about("a.key");
        assert_eq!((finding.severity, finding.error.code), (Severity::Error, Code::Denied));
        assert_eq!(finding.error.message, words);
        assert!(finding.hint.contains("chmod 0400"));
    }
}

#[test]
fn serves_exposed_keys_with_a_warning_where_told_to() {
    let place = Place::new();
    place.put("a.key", &fixture("p-256.pem"));
    let subject = subject_of(&json!({ "dir": place.path(), "permissions": "warn" }));
    for (mode, words) in EXPOSED {
        place.chmod("a.key", mode);
        let listing = subject.open().unwrap().listing().unwrap();
        assert_eq!(listing.keys.len(), 1);
        assert_eq!(listing.findings[0].severity, Severity::Warning);
        assert_eq!(listing.findings[0].error.message, words);
    }
}

#[test]
fn serves_keys_that_their_group_can_read() {
    let place = Place::new();
    place.put("a.key", &fixture("p-256.pem"));
    for mode in [0o400, 0o440, 0o600, 0o640, 0o750] {
        place.chmod("a.key", mode);
        let listing = place.listing();
        assert_eq!((listing.keys.len(), listing.findings.len()), (1, 0), "{mode:o}");
    }
}
