//! Walking the tree, strictly by namespace.
//!
//! `uppsala`'s own look-ups are not used for what decides something: `get_attribute` ignores namespaces, and
//! `element_text` ends at the first text node.

use bergshamra::xml::{Document, Element, NodeId, NodeKind};

/// SAML 2.0 protocol (saml-core 1.1).
pub const PROTOCOL: &str = "urn:oasis:names:tc:SAML:2.0:protocol";
/// SAML 2.0 assertions (saml-core 1.1).
pub const ASSERTION: &str = "urn:oasis:names:tc:SAML:2.0:assertion";
/// SAML 2.0 metadata (saml-metadata 1.1).
pub const METADATA: &str = "urn:oasis:names:tc:SAML:2.0:metadata";
/// XML signatures (xmldsig-core 1.1).
pub const SIGNATURE: &str = "http://www.w3.org/2000/09/xmldsig#";

/// Whether `node` is the element `{namespace}name`.
pub fn is(document: &Document<'_>, node: NodeId, namespace: &str, name: &str) -> bool {
    document
        .element(node)
        .is_some_and(|element| element.matches_name_ns(namespace, name))
}

/// The element children.
pub fn elements<'d>(document: &'d Document<'_>, node: NodeId) -> impl Iterator<Item = (NodeId, &'d Element<'d>)> {
    document
        .children_iter(node)
        .filter_map(|child| Some((child, document.element(child)?)))
}

/// The element children called `{namespace}name`.
pub fn children(document: &Document<'_>, node: NodeId, namespace: &str, name: &str) -> Vec<NodeId> {
    document
        .children_iter(node)
        .filter(|child| is(document, *child, namespace, name))
        .collect()
}

/// The child called `{namespace}name`; none if there are several, too.
pub fn only_child(document: &Document<'_>, node: NodeId, namespace: &str, name: &str) -> Option<NodeId> {
    match children(document, node, namespace, name).as_slice() {
        [only] => Some(*only),
        _ => None,
    }
}

/// The attribute called `name` in no namespace.
pub fn attribute<'d>(document: &'d Document<'_>, node: NodeId, name: &str) -> Option<&'d str> {
    let element = document.element(node)?;
    element
        .attributes
        .iter()
        .find(|attribute| attribute.name.namespace_uri.is_none() && attribute.name.local_name == name)
        .map(|attribute| attribute.value.as_ref())
}

/// All text of an element that has nothing but text.
pub fn text(document: &Document<'_>, node: NodeId) -> Option<String> {
    let mut all = String::new();
    for child in document.children_iter(node) {
        match document.node_kind(child)? {
            NodeKind::Text(text) => all.push_str(text),
            _ => return None,
        }
    }
    Some(all)
}
