//! Reads a verified assertion: whom it names, for whom, and until when (saml-profiles 4.1.4.2 and 4.1.4.3).

use bergshamra::xml::{Document, NodeId};
use chrono::{DateTime, Utc};

use super::CLOCK_SKEW;
use super::config::{NameIdFormat, Settings};
use super::dom::{self, ASSERTION};
use super::error::{SamlError, Signed};
use super::gate::Response;

/// Of a NameID: saml-core 8.3.7 allows a persistent one 256 characters.
const MAX_NAME_ID_CHARS: usize = 256;

const BEARER: &str = "urn:oasis:names:tc:SAML:2.0:cm:bearer";

/// Attributes that hold a time.
const TIMES: [&str; 5] = [
    "IssueInstant",
    "AuthnInstant",
    "NotBefore",
    "NotOnOrAfter",
    "SessionNotOnOrAfter",
];

/// What this response has to answer.
pub struct Expected<'a> {
    pub settings: &'a Settings,
    /// `None` for a sign-in that the identity provider began.
    pub request_id: Option<&'a str>,
    pub now: DateTime<Utc>,
}

/// What a verified assertion says.
pub struct Claims {
    pub assertion_id: String,
    pub subject: String,
    pub email: String,
    pub display_name: String,
    pub groups: Option<Vec<String>>,
    pub session_index: String,
    pub session_ends: Option<DateTime<Utc>>,
    /// Without skew.
    pub valid_until: DateTime<Utc>,
}

/// Reads `assertion`, which must be the node that a verified signature covers.
pub fn read(
    document: &Document<'_>,
    response: &Response,
    assertion: NodeId,
    expected: &Expected<'_>,
) -> Result<Claims, SamlError> {
    check_times(document, response)?;
    check_response(document, response, expected)?;
    check_issuer(document, assertion, Signed::Assertion, expected.settings)?;
    check_conditions(document, assertion, expected)?;
    let subject = only(document, assertion, "Subject")?;
    let valid_until = check_confirmations(document, subject, expected)?;
    let (name, format) = name_id(document, subject, expected.settings)?;
    let attributes = Attributes::new(document, assertion)?;
    let (session_index, session_ends) = session(document, assertion, expected.now)?;
    let settings = expected.settings;
    Ok(Claims {
        assertion_id: dom::attribute(document, assertion, "ID").unwrap_or_default().to_owned(),
        email: email(&attributes, settings, &name, format)?,
        display_name: attributes.first(settings.display_name_attribute.as_deref())?,
        groups: settings
            .groups_attribute
            .as_deref()
            .map(|name| attributes.values(name))
            .transpose()?,
        subject: name,
        session_index,
        session_ends,
        valid_until,
    })
}

/// The response's own attributes are signed only if the response is; what counts is in the assertion as well.
fn check_response(document: &Document<'_>, response: &Response, expected: &Expected<'_>) -> Result<(), SamlError> {
    match dom::attribute(document, response.root, "Destination") {
        Some(destination) if destination == expected.settings.acs_url => {}
        // saml-bindings 3.5.5.2: a signed message must say where it is meant to go.
        None if response.response_signature.is_none() => {}
        _ => return Err(SamlError::Destination),
    }
    if dom::attribute(document, response.root, "InResponseTo") != expected.request_id {
        return Err(SamlError::InResponseTo {
            element: Signed::Response,
        });
    }
    if !dom::children(document, response.root, ASSERTION, "Issuer").is_empty() {
        check_issuer(document, response.root, Signed::Response, expected.settings)?;
    }
    Ok(())
}

fn check_issuer(document: &Document<'_>, node: NodeId, element: Signed, settings: &Settings) -> Result<(), SamlError> {
    let issuer = dom::only_child(document, node, ASSERTION, "Issuer").and_then(|issuer| dom::text(document, issuer));
    match issuer {
        Some(issuer) if issuer == settings.idp_entity_id => Ok(()),
        _ => Err(SamlError::Issuer { element }),
    }
}

fn check_conditions(document: &Document<'_>, assertion: NodeId, expected: &Expected<'_>) -> Result<(), SamlError> {
    let conditions = only(document, assertion, "Conditions")?;
    check_not_before(document, conditions, expected.now)?;
    if dom::attribute(document, conditions, "NotOnOrAfter").is_some() {
        check_not_on_or_after(document, conditions, expected.now)?;
    }
    for (_, condition) in dom::elements(document, conditions) {
        let known = ["AudienceRestriction", "OneTimeUse", "ProxyRestriction"]
            .into_iter()
            .any(|name| condition.matches_name_ns(ASSERTION, name));
        if !known {
            return Err(SamlError::Condition);
        }
    }
    let restrictions = dom::children(document, conditions, ASSERTION, "AudienceRestriction");
    let ours = |restriction: &NodeId| {
        dom::children(document, *restriction, ASSERTION, "Audience")
            .into_iter()
            .any(|audience| dom::text(document, audience).as_deref() == Some(expected.settings.sp_entity_id.as_str()))
    };
    if restrictions.is_empty() || !restrictions.iter().all(ours) {
        return Err(SamlError::Audience);
    }
    Ok(())
}

/// One bearer confirmation must fit. Answers the latest time at which one of them still does.
fn check_confirmations(
    document: &Document<'_>,
    subject: NodeId,
    expected: &Expected<'_>,
) -> Result<DateTime<Utc>, SamlError> {
    let mut latest = None;
    let mut refusal = SamlError::Incomplete("a bearer confirmation");
    for confirmation in dom::children(document, subject, ASSERTION, "SubjectConfirmation") {
        if dom::attribute(document, confirmation, "Method") != Some(BEARER) {
            continue;
        }
        match check_confirmation(document, confirmation, expected) {
            Ok(until) => latest = latest.max(Some(until)),
            Err(error) => refusal = error,
        }
    }
    latest.ok_or(refusal)
}

fn check_confirmation(
    document: &Document<'_>,
    confirmation: NodeId,
    expected: &Expected<'_>,
) -> Result<DateTime<Utc>, SamlError> {
    let data = only(document, confirmation, "SubjectConfirmationData")?;
    if dom::attribute(document, data, "Recipient") != Some(expected.settings.acs_url.as_str()) {
        return Err(SamlError::Recipient);
    }
    if dom::attribute(document, data, "InResponseTo") != expected.request_id {
        return Err(SamlError::InResponseTo {
            element: Signed::Assertion,
        });
    }
    check_not_before(document, data, expected.now)?;
    check_not_on_or_after(document, data, expected.now)
}

fn check_not_before(document: &Document<'_>, node: NodeId, now: DateTime<Utc>) -> Result<(), SamlError> {
    let Some(not_before) = instant(document, node, "NotBefore")? else {
        return Ok(());
    };
    match not_before.signed_duration_since(now) > CLOCK_SKEW {
        true => Err(SamlError::NotYetValid { attribute: "NotBefore" }),
        false => Ok(()),
    }
}

fn check_not_on_or_after(
    document: &Document<'_>,
    node: NodeId,
    now: DateTime<Utc>,
) -> Result<DateTime<Utc>, SamlError> {
    let until = instant(document, node, "NotOnOrAfter")?.ok_or(SamlError::Incomplete("NotOnOrAfter"))?;
    match now.signed_duration_since(until) >= CLOCK_SKEW {
        true => Err(SamlError::Expired {
            attribute: "NotOnOrAfter",
        }),
        false => Ok(until),
    }
}

fn instant(document: &Document<'_>, node: NodeId, name: &'static str) -> Result<Option<DateTime<Utc>>, SamlError> {
    let Some(text) = dom::attribute(document, node, name) else {
        return Ok(None);
    };
    parse_utc(text).map(Some).ok_or(SamlError::Incomplete(name))
}

/// saml-core 1.3.3: times are in UTC, so they end in `Z`.
fn parse_utc(text: &str) -> Option<DateTime<Utc>> {
    let plain = |byte: u8| byte.is_ascii_digit() || b"-:.TZ".contains(&byte);
    if !text.ends_with('Z') || !text.bytes().all(plain) {
        return None;
    }
    DateTime::parse_from_rfc3339(text)
        .ok()
        .map(|instant| instant.with_timezone(&Utc))
}

/// Every time in the document is one, whether it decides something or not: `saml-rs` 0.6.1 multiplies before it looks
/// whether digits are digits, which overflows.
fn check_times(document: &Document<'_>, response: &Response) -> Result<(), SamlError> {
    for node in document.descendants(response.root) {
        for attribute in document
            .element(node)
            .map(|element| element.attributes.as_slice())
            .unwrap_or_default()
        {
            let name = TIMES.into_iter().find(|name| *name == attribute.name.local_name);
            if let Some(name) = name
                && parse_utc(&attribute.value).is_none()
            {
                return Err(SamlError::Incomplete(name));
            }
        }
    }
    for node in [response.root, response.assertion] {
        instant(document, node, "IssueInstant")?.ok_or(SamlError::Incomplete("IssueInstant"))?;
    }
    Ok(())
}

fn name_id(
    document: &Document<'_>,
    subject: NodeId,
    settings: &Settings,
) -> Result<(String, Option<NameIdFormat>), SamlError> {
    let node = only(document, subject, "NameID")?;
    let name = dom::text(document, node).ok_or(SamlError::Incomplete("NameID"))?;
    let plain = !name.is_empty() && name.trim() == name && !name.chars().any(char::is_control);
    if !plain || name.chars().count() > MAX_NAME_ID_CHARS {
        return Err(SamlError::Incomplete("NameID"));
    }
    let uri = dom::attribute(document, node, "Format").unwrap_or(NameIdFormat::UNSPECIFIED);
    if uri == NameIdFormat::TRANSIENT {
        return Err(SamlError::NameIdFormat { found: "transient" });
    }
    let format = NameIdFormat::from_uri(uri);
    if settings.name_id_format.is_some() && format != settings.name_id_format {
        return Err(SamlError::NameIdFormat {
            found: format.map_or("another", NameIdFormat::name),
        });
    }
    Ok((name, format))
}

/// The attribute, if one is configured; else a NameID that is an address.
fn email(
    attributes: &Attributes,
    settings: &Settings,
    name: &str,
    format: Option<NameIdFormat>,
) -> Result<String, SamlError> {
    if settings.email_attribute.is_some() {
        return attributes.first(settings.email_attribute.as_deref());
    }
    Ok(match format {
        Some(NameIdFormat::EmailAddress) => name.to_owned(),
        _ => String::new(),
    })
}

/// `SessionIndex` of the first statement that has one, and the earliest `SessionNotOnOrAfter`.
fn session(
    document: &Document<'_>,
    assertion: NodeId,
    now: DateTime<Utc>,
) -> Result<(String, Option<DateTime<Utc>>), SamlError> {
    let statements = dom::children(document, assertion, ASSERTION, "AuthnStatement");
    if statements.is_empty() {
        return Err(SamlError::Incomplete("AuthnStatement"));
    }
    let mut ends: Option<DateTime<Utc>> = None;
    for statement in &statements {
        let Some(end) = instant(document, *statement, "SessionNotOnOrAfter")? else {
            continue;
        };
        if now.signed_duration_since(end) >= CLOCK_SKEW {
            return Err(SamlError::Expired {
                attribute: "SessionNotOnOrAfter",
            });
        }
        ends = Some(ends.map_or(end, |earlier| earlier.min(end)));
    }
    let index = statements
        .iter()
        .find_map(|statement| dom::attribute(document, *statement, "SessionIndex"));
    Ok((index.unwrap_or_default().to_owned(), ends))
}

/// Attributes by `Name`.
struct Attributes {
    /// `None` for values that are no plain text, which matters only where they are asked for.
    found: Vec<(String, Option<Vec<String>>)>,
}

impl Attributes {
    fn new(document: &Document<'_>, assertion: NodeId) -> Result<Self, SamlError> {
        let mut found = Vec::new();
        for statement in dom::children(document, assertion, ASSERTION, "AttributeStatement") {
            for attribute in dom::children(document, statement, ASSERTION, "Attribute") {
                let name =
                    dom::attribute(document, attribute, "Name").ok_or(SamlError::Incomplete("an attribute's name"))?;
                let values = dom::children(document, attribute, ASSERTION, "AttributeValue")
                    .into_iter()
                    .map(|value| dom::text(document, value))
                    .collect();
                found.push((name.to_owned(), values));
            }
        }
        Ok(Self { found })
    }

    /// All values of `name`, in order, without empty ones. Some identity providers send one element for each value.
    fn values(&self, name: &str) -> Result<Vec<String>, SamlError> {
        let mut all = Vec::new();
        for (_, values) in self.found.iter().filter(|(found, _)| found == name) {
            let values = values
                .as_ref()
                .ok_or(SamlError::Incomplete("plain text in an attribute that is read"))?;
            all.extend(values.iter().filter(|value| !value.is_empty()).cloned());
        }
        Ok(all)
    }

    fn first(&self, name: Option<&str>) -> Result<String, SamlError> {
        let Some(name) = name else { return Ok(String::new()) };
        Ok(self.values(name)?.into_iter().next().unwrap_or_default())
    }
}

fn only(document: &Document<'_>, node: NodeId, name: &'static str) -> Result<NodeId, SamlError> {
    dom::only_child(document, node, ASSERTION, name).ok_or(SamlError::Incomplete(name))
}
