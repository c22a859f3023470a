//! What a response must look like before anything in it is believed: its bytes, then its structure.
//!
//! The byte rules need no parser, so that no two parsers can differ over them. In XML a `<` stands for itself only where
//! markup begins, or inside of comments, CDATA and instructions; as those are refused, looking for `<!` and `<?` is exact.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bergshamra::xml::uppsala::Parser;
use bergshamra::xml::{Document, NodeId};

use super::dom;
use super::error::SamlError;

/// Of the decoded response. Ordinary ones have 5 to 20 KiB; one with a thousand groups about 100.
pub const MAX_RESPONSE_BYTES: usize = 256 * 1024;

/// Of nested elements. An ordinary response has nine (down to `InclusiveNamespaces`).
pub const MAX_DEPTH: u32 = 32;

/// Of tags. As many do not fit into a response that says something; a thousand groups make about 2,100.
pub const MAX_TAGS: usize = 16 * 1024;

/// Of attributes and namespaces in one tag. Parsers compare each with each; `saml-rs` has the same bound.
pub const MAX_ATTRIBUTES: usize = 64;

/// Four characters carry three bytes; the rest is for line ends, which MIME puts after each 76 characters.
const MAX_BASE64_BYTES: usize = MAX_RESPONSE_BYTES / 3 * 4 + MAX_RESPONSE_BYTES / 16;

/// Markup that no identity provider needs and that makes parsers differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Markup {
    /// Entities, and with them references to files and hosts, and bombs.
    DocumentType,
    /// Splits the text of a NameID for some readers, while its canonical form has none.
    Comment,
    ProcessingInstruction,
    Cdata,
}

/// Where the parts are.
pub struct Response {
    pub root: NodeId,
    pub assertion: NodeId,
    /// The `Signature` that is the response's own child.
    pub response_signature: Option<NodeId>,
    /// The `Signature` that is the assertion's own child.
    pub assertion_signature: Option<NodeId>,
}

/// The form field's XML, after the rules for bytes.
pub fn decode(field: &str) -> Result<String, SamlError> {
    if field.len() > MAX_BASE64_BYTES {
        return Err(SamlError::TooLarge);
    }
    let compact: Vec<u8> = field.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let bytes = STANDARD.decode(compact).map_err(|_| SamlError::NotBase64)?;
    if bytes.len() > MAX_RESPONSE_BYTES {
        return Err(SamlError::TooLarge);
    }
    let xml = String::from_utf8(bytes).map_err(|_| SamlError::NotXml)?;
    refuse_markup(&xml)?;
    refuse_excess(&xml)?;
    Ok(xml)
}

/// Refuses document types, comments, instructions and CDATA. An XML declaration may stand at the very beginning.
fn refuse_markup(xml: &str) -> Result<(), SamlError> {
    let body = match xml.strip_prefix("<?xml ") {
        Some(rest) => rest,
        None => xml,
    };
    for (at, _) in body.match_indices('<') {
        let Some(markup) = body.get(at + 1..) else { continue };
        let found = if markup.starts_with('?') {
            Markup::ProcessingInstruction
        } else if markup.starts_with("!--") {
            Markup::Comment
        } else if markup.starts_with("![CDATA[") {
            Markup::Cdata
        } else if markup.starts_with('!') {
            Markup::DocumentType
        } else {
            continue;
        };
        return Err(SamlError::Markup(found));
    }
    Ok(())
}

/// Bounds what a parser has to do. A tag lies between one `<` and the next, and each attribute has its `=`; what text
/// adds to the count is far from the bound.
fn refuse_excess(xml: &str) -> Result<(), SamlError> {
    let mut tags = 0;
    for piece in xml.split('<') {
        tags += 1;
        if tags > MAX_TAGS || piece.bytes().filter(|byte| *byte == b'=').count() > MAX_ATTRIBUTES {
            return Err(SamlError::TooComplex);
        }
    }
    Ok(())
}

/// The tree. Depth is bounded, entities and document types are refused a second time.
pub fn parse(xml: &str) -> Result<Document<'_>, SamlError> {
    Parser::new()
        .with_max_depth(MAX_DEPTH)
        .with_forbid_dtd(true)
        .with_forbid_entities(true)
        .parse(xml)
        .map_err(|_| SamlError::NotXml)
}

/// Finds the parts, and refuses every structure that signature wrapping needs. Names are compared without their
/// namespace where something is refused, as readers exist that know no namespaces.
pub fn inspect(document: &Document<'_>) -> Result<Response, SamlError> {
    let root = document.document_element().ok_or(SamlError::NotXml)?;
    if !dom::is(document, root, dom::PROTOCOL, "Response") {
        return Err(SamlError::NotAResponse);
    }
    if dom::attribute(document, root, "Version") != Some("2.0") {
        return Err(SamlError::NotAResponse);
    }
    check_status(document, root)?;
    let assertion = only_assertion(document, root)?;
    let (response_signature, assertion_signature) = signatures(document, root, assertion)?;
    Ok(Response {
        root,
        assertion,
        response_signature,
        assertion_signature,
    })
}

/// Status codes of saml-core 3.2.2.2 that we tell apart.
const SUCCESS: &str = "urn:oasis:names:tc:SAML:2.0:status:Success";

/// An answer that says no carries no assertion, and need not be signed: it only ever ends a sign-in.
fn check_status(document: &Document<'_>, root: NodeId) -> Result<(), SamlError> {
    let code = dom::only_child(document, root, dom::PROTOCOL, "Status")
        .and_then(|status| dom::only_child(document, status, dom::PROTOCOL, "StatusCode"))
        .ok_or(SamlError::NotAResponse)?;
    match dom::attribute(document, code, "Value") {
        Some(SUCCESS) => Ok(()),
        Some(top) => {
            let second = dom::only_child(document, code, dom::PROTOCOL, "StatusCode")
                .and_then(|code| dom::attribute(document, code, "Value"));
            Err(SamlError::Denied {
                status: known_status(second)
                    .or(known_status(Some(top)))
                    .unwrap_or("another status"),
            })
        }
        None => Err(SamlError::NotAResponse),
    }
}

/// The code's last word, if it is one of the standard's: nothing that a stranger wrote gets into a log.
fn known_status(code: Option<&str>) -> Option<&'static str> {
    const KNOWN: [&str; 12] = [
        "AuthnFailed",
        "InvalidNameIDPolicy",
        "NoAuthnContext",
        "NoAvailableIDP",
        "NoPassive",
        "NoSupportedIDP",
        "RequestDenied",
        "RequestUnsupported",
        "UnknownPrincipal",
        "Requester",
        "Responder",
        "VersionMismatch",
    ];
    let word = code?.strip_prefix("urn:oasis:names:tc:SAML:2.0:status:")?;
    KNOWN.into_iter().find(|known| *known == word)
}

fn only_assertion(document: &Document<'_>, root: NodeId) -> Result<NodeId, SamlError> {
    let mut found = Vec::new();
    for node in document.descendants(root) {
        let Some(element) = document.element(node) else {
            continue;
        };
        match element.name.local_name.as_ref() {
            "EncryptedAssertion" => return Err(SamlError::Encrypted),
            "Assertion" => found.push(node),
            "Response" if node != root => return Err(SamlError::Responses),
            _ => {}
        }
    }
    let [assertion] = found.as_slice() else {
        return Err(SamlError::Assertions { found: found.len() });
    };
    let in_place =
        dom::is(document, *assertion, dom::ASSERTION, "Assertion") && document.parent(*assertion) == Some(root);
    if !in_place || dom::attribute(document, *assertion, "Version") != Some("2.0") {
        return Err(SamlError::MisplacedAssertion);
    }
    Ok(*assertion)
}

/// The signatures of response and assertion: direct children, at most one each, and none anywhere else.
fn signatures(
    document: &Document<'_>,
    root: NodeId,
    assertion: NodeId,
) -> Result<(Option<NodeId>, Option<NodeId>), SamlError> {
    let (mut of_response, mut of_assertion) = (None, None);
    for node in document.descendants(root) {
        let Some(element) = document.element(node) else {
            continue;
        };
        if element.name.local_name != "Signature" {
            continue;
        }
        let place = match document.parent(node) {
            Some(parent) if parent == root => &mut of_response,
            Some(parent) if parent == assertion => &mut of_assertion,
            _ => return Err(SamlError::MisplacedSignature),
        };
        if place.is_some() || !dom::is(document, node, dom::SIGNATURE, "Signature") {
            return Err(SamlError::MisplacedSignature);
        }
        *place = Some(node);
    }
    Ok((of_response, of_assertion))
}
