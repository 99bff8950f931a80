//! The authentication of requests: `auth-type`, `auth-secret`, `auth-url`, `auth-signin`, and their
//! like.

use super::reader::{Reader, is_token};
use crate::routes::policy::{Auth, BasicAuth, BasicAuthForm, ExternalAuth};

pub(super) fn read(reader: &mut Reader<'_>) -> Option<Auth> {
    let basic = basic(reader);
    let external = external(reader);
    if basic.is_some() && external.is_some() {
        reader.unsupported("auth-url", "is set together with auth-type", "use one of the two");
    }
    basic.map(Auth::Basic).or_else(|| external.map(|external| Auth::External(Box::new(external))))
}

fn basic(reader: &mut Reader<'_>) -> Option<BasicAuth> {
    let secret = reader.secret("auth-secret");
    let realm = reader.text("auth-realm").unwrap_or("Authentication Required");
    if realm.contains(['"', '\\']) || realm.chars().any(char::is_control) {
        reader.bad("auth-realm", "contains a quotation mark, `\\` or a control character", "remove it");
    }
    let form = match reader.text("auth-secret-type") {
        None | Some("auth-file") => BasicAuthForm::File,
        Some("auth-map") => BasicAuthForm::Map,
        Some(other) => {
            reader.bad("auth-secret-type", format_args!("`{other}` is unknown"), "use auth-file or auth-map");
            BasicAuthForm::File
        }
    };
    match reader.text("auth-type")? {
        "basic" => {}
        "digest" => {
            reader.unsupported("auth-type", "digest is not supported", "use basic, over TLS");
            return None;
        }
        other => {
            reader.bad("auth-type", format_args!("`{other}` is unknown"), "use basic");
            return None;
        }
    }
    let Some(secret) = secret else {
        reader.bad("auth-type", "is set without auth-secret", "name a Secret with an htpasswd file");
        return None;
    };
    Some(BasicAuth { secret, form, realm: realm.into() })
}

fn external(reader: &mut Reader<'_>) -> Option<ExternalAuth> {
    let url = reader.url("auth-url");
    let method = reader.text("auth-method");
    if let Some(method) = method.filter(|method| !is_token(method)) {
        reader.bad("auth-method", format_args!("`{method}` is not a method"), "use one such as GET");
    }
    let parameter = reader.text("auth-signin-redirect-param").unwrap_or("rd");
    if !is_token(parameter) {
        reader.bad("auth-signin-redirect-param", "is not a name", "use one such as rd");
    }
    let external = ExternalAuth {
        method: method.map(|method| method.to_ascii_uppercase().into()),
        signin: reader.url("auth-signin"),
        signin_parameter: parameter.into(),
        response_headers: reader.header_names("auth-response-headers").unwrap_or_default(),
        request_redirect: reader.template("auth-request-redirect"),
        always_set_cookie: reader.flag("auth-always-set-cookie").unwrap_or(false),
        url: url?,
    };
    Some(external)
}
