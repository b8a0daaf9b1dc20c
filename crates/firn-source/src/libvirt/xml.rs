//! XML as a tree that is written back as it was, apart from what was changed: order, unknown elements, comments, white
//! space and name spaces stay.
//!
//! Text between elements is kept as it stands in the document, escapes included. Refused: document types (nothing that
//! libvirt writes has one, and entities are how XML bites), more than 16 MiB, and elements nested deeper than 64.

use firn_disk::{Error, Result};
use quick_xml::escape::{escape, unescape};
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

const MOST_BYTES: usize = 16 << 20;
const DEEPEST: usize = 64;

/// An element with all that is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// With its prefix, as `qemu:commandline`.
    pub name: String,
    /// Names and values, in order, without escapes.
    pub attributes: Vec<(String, String)>,
    /// What stands between its tags.
    pub children: Vec<Node>,
}

/// What stands in an element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// An element.
    Element(Element),
    /// Text, a comment or an instruction, as it stands in the document.
    Verbatim(String),
}

impl Element {
    /// An element without content.
    pub fn new(name: &str, attributes: &[(&str, &str)]) -> Self {
        let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { name: name.to_owned(), attributes, children: Vec::new() }
    }

    /// The root element of the document `text`; what stands around it is dropped.
    ///
    /// # Errors
    /// `Io` for what is no XML, since a program said it; `Unsupported` for what the module refuses.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > MOST_BYTES {
            return Err(Error::unsupported("an XML document of more than 16 MiB"));
        }
        let mut reader = Reader::from_str(text);
        let mut open: Vec<Self> = Vec::new();
        loop {
            let start = reader.buffer_position();
            let event = reader.read_event().map_err(|error| broken(&error.to_string()))?;
            let finished = match event {
                Event::Start(tag) if open.len() < DEEPEST => {
                    open.push(Self::opened(&tag)?);
                    None
                }
                Event::Start(_) => return Err(Error::unsupported("an XML document with elements nested too deeply")),
                Event::Empty(tag) => Some(Self::opened(&tag)?),
                Event::End(_) => Some(open.pop().ok_or_else(|| broken("an end without a beginning"))?),
                Event::DocType(_) => return Err(Error::unsupported("an XML document with a document type")),
                Event::Eof => return Err(broken("it ends too early")),
                _ => {
                    let range = usize::try_from(start).ok().zip(usize::try_from(reader.buffer_position()).ok());
                    let verbatim = range.and_then(|(start, end)| text.get(start..end)).unwrap_or_default();
                    if let Some(parent) = open.last_mut() {
                        parent.children.push(Node::Verbatim(verbatim.to_owned()));
                    }
                    None
                }
            };
            match (finished, open.last_mut()) {
                (Some(element), Some(parent)) => parent.children.push(Node::Element(element)),
                (Some(root), None) => return Ok(root),
                (None, _) => {}
            }
        }
    }

    fn opened(tag: &BytesStart<'_>) -> Result<Self> {
        let name = tag.name().as_ref().to_owned();
        let attributes = tag
            .attributes()
            .map(|attribute| {
                let attribute = attribute.map_err(|error| broken(&error.to_string()))?;
                let value = attribute.normalized_value(XmlVersion::Implicit1_0);
                let value = value.map_err(|error| broken(&error.to_string()))?;
                Ok((attribute.key.as_ref().to_owned(), value.into_owned()))
            })
            .collect::<Result<_>>()?;
        Ok(Self { name, attributes, children: Vec::new() })
    }

    /// The document again.
    pub fn write(&self) -> String {
        let mut text = String::new();
        self.write_to(&mut text);
        text
    }

    // As deep as the parser let it become.
    fn write_to(&self, text: &mut String) {
        text.push('<');
        text.push_str(&self.name);
        for (name, value) in &self.attributes {
            text.push_str(&format!(" {name}='{}'", escape(value.as_str())));
        }
        if self.children.is_empty() {
            text.push_str("/>");
            return;
        }
        text.push('>');
        for child in &self.children {
            match child {
                Node::Element(element) => element.write_to(text),
                Node::Verbatim(verbatim) => text.push_str(verbatim),
            }
        }
        text.push_str(&format!("</{}>", self.name));
    }

    /// The value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Sets an attribute, in its old place or at the end.
    pub fn set_attribute(&mut self, name: &str, value: &str) {
        match self.attributes.iter_mut().find(|(found, _)| found == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.attributes.push((name.to_owned(), value.to_owned())),
        }
    }

    /// Drops an attribute.
    pub fn remove_attribute(&mut self, name: &str) {
        self.attributes.retain(|(found, _)| found != name);
    }

    /// The elements in it, in order.
    pub fn elements(&self) -> impl Iterator<Item = &Self> {
        self.children.iter().filter_map(|child| match child {
            Node::Element(element) => Some(element),
            Node::Verbatim(_) => None,
        })
    }

    /// As [`elements`](Self::elements), to be changed.
    pub fn elements_mut(&mut self) -> impl Iterator<Item = &mut Self> {
        self.children.iter_mut().filter_map(|child| match child {
            Node::Element(element) => Some(element),
            Node::Verbatim(_) => None,
        })
    }

    /// The first element of this name in it.
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.elements().find(|element| element.name == name)
    }

    /// As [`child`](Self::child), to be changed.
    pub fn child_mut(&mut self, name: &str) -> Option<&mut Self> {
        self.elements_mut().find(|element| element.name == name)
    }

    /// The element at the end of a path of names.
    pub fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |element, name| element.child(name))
    }

    /// Drops the elements in it for which `is_wanted` is false, with the white space before them.
    pub fn retain_elements(&mut self, mut is_wanted: impl FnMut(&Self) -> bool) {
        let mut kept: Vec<Node> = Vec::with_capacity(self.children.len());
        for child in std::mem::take(&mut self.children) {
            match &child {
                Node::Element(element) if !is_wanted(element) => {
                    if matches!(kept.last(), Some(Node::Verbatim(text)) if text.trim().is_empty()) {
                        kept.pop();
                    }
                }
                _ => kept.push(child),
            }
        }
        self.children = kept;
    }

    /// Its text without escapes and without white space around it; that of elements in it does not count.
    pub fn text(&self) -> String {
        let verbatim = self.children.iter().filter_map(|child| match child {
            Node::Verbatim(text) if !text.starts_with("<!") && !text.starts_with("<?") => Some(text.as_str()),
            _ => None,
        });
        let raw = verbatim.collect::<String>();
        unescape(&raw).map_or_else(|_| raw.trim().to_owned(), |text| text.trim().to_owned())
    }

    /// Replaces everything in it by `text`.
    pub fn set_text(&mut self, text: &str) {
        self.children = vec![Node::Verbatim(escape(text).into_owned())];
    }

    /// Puts `element` at the end.
    pub fn push(&mut self, element: Self) {
        self.children.push(Node::Element(element));
    }
}

/// An element with a text and nothing else.
pub fn with_text(name: &str, text: &str) -> Element {
    let mut element = Element::new(name, &[]);
    element.set_text(text);
    element
}

fn broken(what: &str) -> Error {
    Error::new(firn_disk::ErrorKind::Io, format!("this is no XML: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::ErrorKind;

    #[test]
    fn a_document_is_written_as_it_was_read() {
        let text =
            "<a x='1' q:y='&lt;&apos;&amp;'>\n  <!-- c <b> -->\n  <b/>t&amp;u<![CDATA[<z>]]>\n  <q:c>&#65;</q:c>\n</a>";
        let root = Element::parse(&format!("<?xml version='1.0'?>\n<!-- x -->{text}\n")).unwrap();
        assert_eq!(root.write(), text);
        assert_eq!(root.attribute("q:y"), Some("<'&"));
        assert_eq!(root.child("q:c").unwrap().text(), "A");
        assert_eq!(Element::parse("<a>x &lt; y</a>").unwrap().text(), "x < y");
    }

    #[test]
    fn what_is_refused() {
        let kind = |text: &str| Element::parse(text).unwrap_err().kind();
        let mut texts = vec!["", "<a>", "<a></b>", "<a b></a>", "<a b='1' b='2'/>", "</a>", "no", "<a b='&x;'/>", "<a"];
        texts.push("error: failed to get domain 'x'");
        for text in texts {
            assert_eq!(kind(text), ErrorKind::Io, "{text}");
        }
        assert_eq!(kind("<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>"), ErrorKind::Unsupported);
        assert_eq!(kind(&format!("{}{}", "<a>".repeat(65), "</a>".repeat(65))), ErrorKind::Unsupported);
    }

    #[test]
    fn changing_it() {
        let mut root = Element::parse("<a>\n  <b/>\n  <c/>\n  <b/>\n</a>").unwrap();
        root.retain_elements(|element| element.name != "b");
        root.child_mut("c").unwrap().set_attribute("n", "1'2");
        root.push(with_text("d", "x<y"));
        assert_eq!(root.write(), "<a>\n  <c n='1&apos;2'/>\n<d>x&lt;y</d></a>");
    }
}
