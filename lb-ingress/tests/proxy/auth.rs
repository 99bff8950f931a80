//! Who may send requests.

use std::sync::Arc;

use lb_ingress::routes::Policy;
use lb_ingress::routes::policy::{Auth, BasicAuth, BasicAuthForm};
use lb_model::{ObjectName, Secret};

use crate::world::{Endpoint, World};

/// `ann` with the passwords `password` (bcrypt), `bob` with the same (SHA-512 of crypt).
const FILE: &str = "ann:$2y$05$abcdefghijklmnopqrstuuWG29KuyeAicPCJODk1zjyGvyQUU2awu\n\
                    bob:$6$saltsalt12./$4gbx7ydD3IxXG0aqJBxpdVsq68Ko8Gi016iilluvExJ0AbqCB/\
                    g09Jd6oMcyRmAH6OJAtF7dtWZ9X9SVrW.xI1\n";

fn secret(data: &[(&str, &str)]) -> Option<Arc<Secret>> {
    let data = data.iter().map(|(key, value)| ((*key).into(), value.as_bytes().into())).collect();
    Some(Arc::new(Secret { data, ..Secret::default() }))
}

#[tokio::test]
async fn basic_authentication() {
    let (world, endpoint) = (World::new().await, Endpoint::start("one").await);
    let users = ObjectName::new("default", "users");
    let basic = BasicAuth { secret: users.clone(), form: BasicAuthForm::File, realm: "Staff only".into() };
    world.simple(Policy { auth: Some(Auth::Basic(basic)), ..Policy::default() }, &[endpoint.address]);
    let authorization = |token: &str| format!("Authorization: Basic {token}\r\n");
    let (ann, bob, wrong) = ("YW5uOnBhc3N3b3Jk", "Ym9iOnBhc3N3b3Jk", "YW5uOnBhc3N3b3Jr");
    for fields in ["", &authorization(ann)] {
        let answer = world.get("/", fields).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "without the Secret: {answer}");
    }
    world.gateway.users.set(&users, secret(&[("auth", FILE)]));
    for token in [ann, ann, bob] {
        let answer = world.get("/x", &authorization(token)).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("one: GET /x\n"), "{answer}");
        assert!(!answer.contains("authorization:"), "the endpoint must not get the password: {answer}");
    }
    let unknown = authorization("ZXZlOnBhc3N3b3Jk");
    for fields in ["", &authorization(wrong), &authorization("!"), &unknown, "Authorization: Bearer x\r\n"] {
        let answer = world.get("/", fields).await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{fields}: {answer}");
        assert!(answer.contains("www-authenticate: Basic realm=\"Staff only\"\r\n"), "{answer}");
    }
    // Another password takes effect at once, also for verified users.
    world.gateway.users.set(&users, secret(&[("auth", "ann:{SHA}AAAAAAAAAAAAAAAAAAAAAAAAAAA=")]));
    assert!(world.get("/", &authorization(ann)).await.starts_with("HTTP/1.1 401 "));
    world.gateway.users.set(&users, secret(&[("auth", "ann:plain")]));
    assert!(world.get("/", &authorization(ann)).await.starts_with("HTTP/1.1 503 "));
    assert_eq!(endpoint.count(), 3);
}

#[tokio::test]
async fn many_wrong_passwords_end() {
    let (world, endpoint) = (Arc::new(World::new().await), Endpoint::start("one").await);
    let users = ObjectName::new("default", "users");
    world
        .gateway
        .users
        .set(&users, secret(&[("ann", FILE.split_once(['\n']).unwrap().0.split_once(':').unwrap().1)]));
    let basic = BasicAuth { secret: users, form: BasicAuthForm::Map, realm: "a".into() };
    world.simple(Policy { auth: Some(Auth::Basic(basic)), ..Policy::default() }, &[endpoint.address]);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let world = world.clone();
        clients.spawn(async move { world.get("/", "Authorization: Basic YW5uOnBhc3N3b3Jr\r\n").await });
    }
    let answers = clients.join_all().await;
    let with = |status: &str| answers.iter().filter(|answer| answer.contains(status)).count();
    assert!(with("HTTP/1.1 401 ") > 0);
    assert_eq!(with("HTTP/1.1 401 ") + with("HTTP/1.1 503 "), 100, "{answers:?}");
    assert_eq!(endpoint.count(), 0);
}
