mod https;

use std::{
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        RSA_PKCS1_SHA256, RsaKeyPair,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;

use super::*;

const ISSUER: &str = "https://id.example.org";
const AUDIENCE: &str = "https://muster.example.org/mcp";

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn in_seconds(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap() + seconds
}

/// An issuer with a key of each kind, whose set of keys is a file.
struct Issuer {
    directory: tempfile::TempDir,
    ec: EcdsaKeyPair,
    rsa: RsaKeyPair,
    ed: Ed25519KeyPair,
}

impl Issuer {
    fn new() -> Self {
        let issuer = Self {
            directory: tempfile::tempdir().unwrap(),
            ec: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
            ed: Ed25519KeyPair::generate().unwrap(),
        };
        issuer.publish(&["ec", "rsa", "ed"]);
        issuer
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("jwks.json")
    }

    fn publish(&self, ids: &[&str]) {
        let point = self.ec.public_key().as_ref();
        let rsa = self.rsa.public_key();
        let modulus = rsa.modulus().big_endian_without_leading_zero();
        let exponent = rsa.exponent().big_endian_without_leading_zero();
        let all = [
            json!({"kid": "ec", "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256",
                "x": base64(&point[1..33]), "y": base64(&point[33..])}),
            json!({"kid": "rsa", "kty": "RSA", "n": base64(modulus), "e": base64(exponent)}),
            json!({"kid": "ed", "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA",
                "x": base64(self.ed.public_key())}),
            json!({"kid": "shared", "kty": "oct", "k": base64("a secret that everybody knows")}),
            json!({"kid": "encryption", "kty": "RSA", "use": "enc", "n": base64(modulus), "e": base64(exponent)}),
            json!({"kid": "of tomorrow", "kty": "PQ"}),
        ];
        let keys: Vec<_> = all
            .into_iter()
            .filter(|key| {
                let id = key["kid"].as_str().unwrap();
                !["ec", "rsa", "ed"].contains(&id) || ids.contains(&id)
            })
            .collect();
        std::fs::write(self.path(), json!({"keys": keys}).to_string()).unwrap();
    }

    fn sign(&self, key: &str, message: &str) -> Vec<u8> {
        let message = message.as_bytes();
        let random = SystemRandom::new();
        match key {
            "ec" => self.ec.sign(&random, message).unwrap().as_ref().to_vec(),
            "ed" => self.ed.sign(message).as_ref().to_vec(),
            _ => {
                let mut signature = vec![0; self.rsa.public_modulus_len()];
                self.rsa
                    .sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .unwrap();
                signature
            }
        }
    }

    fn token(&self, key: &str, claims: &Value) -> String {
        let algorithm = match key {
            "ec" => "ES256",
            "ed" => "EdDSA",
            _ => "RS256",
        };
        let header = json!({"alg": algorithm, "typ": "at+jwt", "kid": key});
        let message = format!(
            "{}.{}",
            base64(header.to_string()),
            base64(claims.to_string())
        );
        format!("{message}.{}", base64(self.sign(key, &message)))
    }

    fn config(&self) -> OauthConfig {
        OauthConfig {
            oauth_issuer: Some(ISSUER.to_owned()),
            oauth_audience: Some(AUDIENCE.to_owned()),
            oauth_jwks: Some(self.path().to_str().unwrap().to_owned()),
            oauth_principals: vec!["ada@example.org=operator/ada".to_owned()],
            ..OauthConfig::default()
        }
    }

    fn oauth(&self) -> Oauth {
        Oauth::new(&self.config()).unwrap().unwrap()
    }
}

fn claims() -> Value {
    json!({
        "iss": ISSUER,
        "aud": [AUDIENCE, "https://elsewhere.example.org"],
        "sub": "claude",
        "exp": in_seconds(300),
        "scope": "openid fleet:read jobs:run",
    })
}

fn changed(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

#[tokio::test]
async fn what_the_issuer_signed_for_us_is_believed() {
    let issuer = Issuer::new();
    let oauth = issuer.oauth();
    for key in ["ec", "rsa", "ed"] {
        let verified = oauth.verify(&issuer.token(key, &claims())).await.unwrap();
        assert_eq!(verified.principal.to_string(), "ai/claude", "{key}");
        assert_eq!(verified.scopes.texts(), ["fleet:read", "jobs:run"]);
        assert!(verified.expire_time <= in_seconds(300) * 1000);
    }
    let named = changed("sub", "ada@example.org".into());
    let verified = oauth.verify(&issuer.token("ec", &named)).await.unwrap();
    assert_eq!(verified.principal.to_string(), "operator/ada");
    let listed = json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "c", "exp": in_seconds(60), "scp": ["jobs:read"]});
    let verified = oauth.verify(&issuer.token("ec", &listed)).await.unwrap();
    assert_eq!(verified.scopes.texts(), ["jobs:read"]);
}

#[tokio::test]
async fn nothing_else_is() {
    let issuer = Issuer::new();
    let stranger = Issuer::new();
    let oauth = issuer.oauth();
    let good = issuer.token("ec", &claims());
    let (message, _) = good.rsplit_once('.').unwrap();
    let unsigned = |header: Value, signature: &dyn Fn(&str) -> Vec<u8>| {
        let message = format!(
            "{}.{}",
            base64(header.to_string()),
            base64(claims().to_string())
        );
        let signature = signature(&message);
        format!("{message}.{}", base64(signature))
    };
    let rsa_key = issuer.rsa.public_key().as_ref().to_vec();
    let by_public_key = move |message: &str| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &rsa_key);
        hmac::sign(&key, message.as_bytes()).as_ref().to_vec()
    };
    let by_shared = |message: &str| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"a secret that everybody knows");
        hmac::sign(&key, message.as_bytes()).as_ref().to_vec()
    };
    let mut no_audience = claims();
    no_audience.as_object_mut().unwrap().remove("aud");
    let mut no_end = claims();
    no_end.as_object_mut().unwrap().remove("exp");
    for (what, token) in [
        ("another issuer's key", stranger.token("ec", &claims())),
        (
            "another issuer",
            issuer.token("ec", &changed("iss", "https://evil.example.org".into())),
        ),
        (
            "another audience",
            issuer.token("ec", &changed("aud", "https://other.example.org".into())),
        ),
        ("no audience", issuer.token("ec", &no_audience)),
        ("no end", issuer.token("ec", &no_end)),
        (
            "not yet",
            issuer.token("ec", &changed("nbf", in_seconds(600).into())),
        ),
        (
            "no principal",
            issuer.token("ec", &changed("sub", Value::Null)),
        ),
        ("no signature", format!("{message}.")),
        (
            "alg none",
            unsigned(json!({"alg": "none", "kid": "ec"}), &|_| Vec::new()),
        ),
        (
            "alg none in capitals",
            unsigned(json!({"alg": "NONE"}), &|_| Vec::new()),
        ),
        (
            "the public key as a secret",
            unsigned(json!({"alg": "HS256", "kid": "rsa"}), &by_public_key),
        ),
        (
            "a shared secret",
            unsigned(json!({"alg": "HS256", "kid": "shared"}), &by_shared),
        ),
        (
            "another algorithm",
            unsigned(json!({"alg": "RS256", "kid": "ec"}), &|m| {
                issuer.sign("rsa", m)
            }),
        ),
        (
            "a key for encryption",
            unsigned(json!({"alg": "RS256", "kid": "encryption"}), &|m| {
                issuer.sign("rsa", m)
            }),
        ),
        (
            "an unknown key",
            unsigned(json!({"alg": "ES256", "kid": "other"}), &|m| {
                issuer.sign("ec", m)
            }),
        ),
        ("too long", format!("{message}.{}", "a".repeat(9 << 10))),
        ("nothing", String::new()),
        ("three dots", "...".to_owned()),
    ] {
        let refused = oauth.verify(&token).await;
        assert!(
            matches!(refused, Err(OauthError::Invalid(_))),
            "{what}: {refused:?}"
        );
    }
    let expired = issuer.token("ec", &changed("exp", in_seconds(-120).into()));
    assert!(matches!(
        oauth.verify(&expired).await,
        Err(OauthError::Expired)
    ));
    let elsewhere = issuer.token("ec", &changed("scope", "openid profile".into()));
    assert!(matches!(
        oauth.verify(&elsewhere).await,
        Err(OauthError::NoScope)
    ));
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_found_but_not_looked_for_without_pause() {
    let issuer = Issuer::new();
    issuer.publish(&["ec"]);
    let oauth = issuer.oauth();
    oauth.verify(&issuer.token("ec", &claims())).await.unwrap();
    issuer.publish(&["rsa"]);
    let rotated = issuer.token("rsa", &claims());
    let refused = oauth.verify(&rotated).await;
    assert!(
        matches!(refused, Err(OauthError::Invalid(_))),
        "{refused:?}"
    );
    tokio::time::advance(Duration::from_secs(11)).await;
    oauth.verify(&rotated).await.unwrap();
    // The old key went with it.
    let refused = oauth.verify(&issuer.token("ec", &claims())).await;
    assert!(refused.is_err());

    // Keys that cannot be had again count for a day.
    std::fs::remove_file(issuer.path()).unwrap();
    tokio::time::advance(Duration::from_secs(3600)).await;
    oauth.verify(&rotated).await.unwrap();
    tokio::time::advance(Duration::from_secs(24 * 3600)).await;
    let refused = oauth.verify(&rotated).await;
    assert!(matches!(refused, Err(OauthError::Keys(_))), "{refused:?}");
}

#[test]
fn settings_belong_together() {
    let issuer = Issuer::new();
    assert!(Oauth::new(&OauthConfig::default()).unwrap().is_none());
    let alone = OauthConfig {
        oauth_issuer: Some(ISSUER.to_owned()),
        ..OauthConfig::default()
    };
    assert!(Oauth::new(&alone).is_err());
    for (kind, principals) in [("host", ""), ("ai", "x=gateway/local"), ("ai", "ada")] {
        let wrong = OauthConfig {
            oauth_principal_kind: kind.to_owned(),
            oauth_principals: vec![principals.to_owned()],
            ..issuer.config()
        };
        assert!(Oauth::new(&wrong).is_err(), "{kind} {principals}");
    }
}
