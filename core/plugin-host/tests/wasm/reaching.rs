//! Guests that reach for what isn't theirs: files, the environment, the network, secrets. Each is refused, and where the
//! operator could allow it, the refusal has the line that would.

use std::net::{TcpListener, UdpSocket};

use keystead_plugin_host::{Class, StoreSpec, testing};
use serde_json::json;

use crate::{
    rig::{BRIEF, PATIENCE, logged},
    scene::{Scene, Vault},
    service::Service,
};

#[tokio::test(flavor = "multi_thread")]
async fn there_are_no_files() {
    let scene = Scene::new().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    for deed in [json!({"read": path}), json!({"read": "/etc/passwd"}), json!({"write": path})] {
        let failure = scene.comes_of("files", deed.clone()).await;
        assert_eq!(failure.class, Class::Denied, "{deed}: {failure}");
    }
    assert_eq!(std::fs::read(path).unwrap(), b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_environment() {
    assert!(std::env::vars().count() > 0);
    let failure = Scene::new().await.comes_of("environment", json!("environment")).await;
    assert!(failure.message.starts_with("0 variables, 0 arguments, in "), "{failure}");
    let cwd = std::env::current_dir().unwrap();
    assert!(!failure.message.contains(cwd.to_str().unwrap()), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_no_sockets() {
    let scene = Scene::new().await;
    let (tcp, udp) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let (to_tcp, to_udp) = (tcp.local_addr().unwrap().to_string(), udp.local_addr().unwrap().to_string());
    let deeds = [
        json!({"connect": to_tcp}),
        json!("listen"),
        json!({"send": to_udp}),
        json!({"resolve": "localhost"}),
    ];
    for deed in deeds {
        let failure = scene.comes_of("sockets", deed.clone()).await;
        assert_eq!(failure.class, Class::Denied, "{deed}: {failure}");
    }
    tcp.set_nonblocking(true).unwrap();
    udp.set_read_timeout(Some(BRIEF)).unwrap();
    tcp.accept().unwrap_err();
    udp.recv(&mut [0; 16]).unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_a_grant_is_not_asked_and_the_refusal_says_what_would_allow_it() {
    let scene = Scene::new().await;
    let (granted, other) = (Service::start().await, Service::start().await);
    let (as_it_is, whole) = ("this", "this in place of its grant");
    for (store, method, url, origin, place, methods) in [
        ("strays", "GET", other.url("/hello?q=1"), other.origin(), as_it_is, "[GET]"),
        (
            "deletes",
            "DELETE",
            granted.url("/hello"),
            granted.origin(),
            whole,
            "[DELETE, GET, POST], secrets: [long, token]",
        ),
    ] {
        let deed = json!({"fetch": {"url": url, "method": method}});
        let failure = scene.doer_of(store, deed, &granted).await.does_it(PATIENCE).await;
        let told = format!(
            "{method} {origin} is not granted to the store `{store}`; {place} would allow it: `grants: {{http: \
             [{{url: \"{origin}\", methods: {methods}}}]}}`"
        );
        assert_eq!((failure.class, failure.message), (Class::Denied, told));
    }
    assert_eq!((granted.heard(), other.heard()), (Vec::new(), Vec::new()));

    let deed = json!({"fetch": {"url": granted.url("/hello")}});
    let failure = scene.doer_of("keeps-to-it", deed, &granted).await.does_it(PATIENCE).await;
    assert_eq!(failure.message, "answered 200: hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_a_service_without_a_grant_leads_nowhere() {
    let scene = Scene::new().await;
    let (granted, other) = (Service::start().await, Service::start().await);
    let url = granted.url(&format!("/to/{}", other.url("/hello")));
    let plain =
        scene.doer_of("is-led", json!({"fetch": {"url": url}}), &granted).await.does_it(PATIENCE).await;
    assert_eq!(plain.message, "answered 302: elsewhere");
    let failure =
        scene.doer_of("follows", json!({"follow": {"url": url}}), &granted).await.does_it(PATIENCE).await;
    assert_eq!(failure.class, Class::Denied, "{failure}");
    let grant = format!("`grants: {{http: [{{url: \"{}\", methods: [GET]}}]}}`", other.origin());
    assert!(failure.message.ends_with(&grant), "{failure}");
    assert_eq!(other.heard(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_stays_with_the_host_unless_it_is_exposed() {
    let scene = Scene::new().await;
    let failure = scene.comes_of("asks", json!({"secret": "token"})).await;
    assert_eq!(failure.class, Class::Denied, "{failure}");
    assert!(failure.message.contains("`token: {…, expose: true}`"), "{failure}");
    let failure = scene.comes_of("asks-openly", json!({"secret": "open"})).await;
    assert_eq!(failure.message, "got 6 bytes");
    assert_eq!(logged(&["hunter2"]), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_ever_in_a_guests_memory_unless_it_is_exposed() {
    let (scene, service) = (Scene::new().await, Service::start().await);
    let [hidden, shown] = ["hidden", "shown"].map(|name| format!("{name} from the guests, ").repeat(200));
    let holds = |secret: &str| testing::guests_hold(secret.as_bytes().split_at(secret.len() - 40).1);
    let vault = || Vault::of([("token", hidden.clone()), ("open", shown.clone())]);
    let doer = async |name, deed| {
        let change = |spec: &mut StoreSpec| {
            service.grant(spec);
            spec.secrets = Box::new(vault());
        };
        scene.doer(name, deed, change).await
    };
    let errand = json!({"url": service.url("/hello"), "form": [["key", "secret:token"]]});
    let sends = doer("sends", json!({"fetch": errand})).await;
    assert_eq!(sends.does_it(PATIENCE).await.message, "answered 200: hello");
    assert!(service.heard().concat().contains("hidden+from+the+guests"));
    assert!(!holds(&hidden), "filled in by the host");
    let asks = doer("asks", json!({"secret": "open"})).await;
    assert_eq!(asks.does_it(PATIENCE).await.message, format!("got {} bytes", shown.len()));
    assert!(holds(&shown), "it was given away");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_another_store_is_none() {
    let scene = Scene::new().await;
    let secrets = || Box::new(Vault::of([("of-neighbour", "swordfish".to_owned())]));
    let neighbour =
        scene.doer("neighbour", json!({"secret": "of-neighbour"}), |spec| spec.secrets = secrets());
    let neighbour = neighbour.await;
    for deed in [json!({"secret": "of-neighbour"}), json!({"sign_with": "of-neighbour"})] {
        let failure = scene.comes_of("pries", deed).await;
        let said = (failure.class, failure.message.as_str());
        assert_eq!(said, (Class::NotFound, "`secrets` of the store names no `of-neighbour`"));
    }
    let failure = neighbour.does_it(PATIENCE).await;
    assert_eq!(failure.class, Class::Denied, "it is there: {failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_filled_in_only_where_its_grant_names_it() {
    let scene = Scene::new().await;
    let service = Service::start().await;
    let errand = |secret: &str| json!({"url": service.url("/hello"), "headers": [["x-key", format!("secret:{secret}")]]});
    let form =
        |secret: &str| json!({"url": service.url("/hello"), "form": [["key", format!("secret:{secret}")]]});
    for errand in [errand("open"), form("open")] {
        let failure =
            scene.doer_of("leaks", json!({"fetch": errand}), &service).await.does_it(PATIENCE).await;
        assert_eq!(failure.class, Class::Denied, "{failure}");
        let told =
            format!("sending the secret `open` to {} is not granted to the store `leaks`", service.origin());
        assert!(failure.message.starts_with(&told), "{failure}");
        assert!(
            failure.message.ends_with("methods: [GET, POST], secrets: [long, open, token]}]}`"),
            "{failure}"
        );
    }
    assert_eq!(service.heard(), Vec::<String>::new());
    for errand in [errand("token"), form("token")] {
        let failure =
            scene.doer_of("fills-in", json!({"fetch": errand}), &service).await.does_it(PATIENCE).await;
        assert_eq!(failure.message, "answered 200: hello");
    }
    let heard = service.heard();
    assert!(heard.len() == 2 && heard.iter().all(|request| request.contains("hunter2")), "{heard:?}");
    assert_eq!(logged(&["hunter2"]), Vec::<String>::new());
}
