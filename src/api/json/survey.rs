//! Looks through the JSON text of a message before anything is made of it: how many values it has, and whether a field of the
//! proto stands twice. It keeps the fields that it met of the messages that are open, and nothing else; what the proto does
//! not know, such as what stands in a `data`, is only counted.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    fmt,
};

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Why a text is not read.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// The field.
    pub path: String,
    text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The values in a text, and the names of fields; none where there is no text. What is no JSON is counted as far as it goes.
///
/// # Errors
/// For more than `most`, and for a field that stands twice.
pub fn count(message: MessageDescriptor, text: &[u8], most: usize) -> Result<usize, Fault> {
    let survey = Survey { most, values: Cell::new(0), fault: RefCell::default() };
    let mut track = serde_path_to_error::Track::new();
    let mut reader = serde_json::Deserializer::from_slice(text);
    let reader = serde_path_to_error::Deserializer::new(&mut reader, &mut track);
    let looked = Look { survey: &survey, of: Of::Message(message) }.deserialize(reader);
    let place =
        looked.map_err(|error: serde_json::Error| format!(" at line {} column {}", error.line(), error.column()));
    let path = track.path().to_string();
    let path = if path == "." { String::new() } else { path };
    Err(match (place, survey.fault.into_inner()) {
        (Err(place), Some(Wrong::Twice(name))) if path.is_empty() => {
            Fault { path: name, text: format!("stands twice{place}") }
        }
        (Err(place), Some(Wrong::Twice(name))) => {
            Fault { path: format!("{path}.{name}"), text: format!("stands twice{place}") }
        }
        (Err(_), Some(Wrong::TooMany)) => {
            let text =
                format!("the body has more than {most} values and names; `json` takes any number of them as text");
            // Of a list it is named, and not the place in it.
            Fault { path: path.split('[').next().unwrap_or_default().to_owned(), text }
        }
        _ => return Ok(survey.values.get()),
    })
}

#[derive(Debug)]
enum Wrong {
    TooMany,
    Twice(String),
}

struct Survey {
    most: usize,
    values: Cell<usize>,
    fault: RefCell<Option<Wrong>>,
}

impl Survey {
    fn one_more<E: Error>(&self) -> Result<(), E> {
        if self.values.get() == self.most {
            return Err(self.found(Wrong::TooMany));
        }
        self.values.set(self.values.get() + 1);
        Ok(())
    }

    fn found<E: Error>(&self, fault: Wrong) -> E {
        *self.fault.borrow_mut() = Some(fault);
        E::custom("refused")
    }
}

/// What stands at a place.
#[derive(Clone)]
enum Of {
    Message(MessageDescriptor),
    /// What has no fields of the proto.
    Free,
}

impl Of {
    /// What a field holds, or each of several.
    fn field(field: &FieldDescriptor) -> Self {
        match field.kind() {
            // Those of google.protobuf have forms of their own.
            Kind::Message(of) if !field.is_map() && of.package_name() != "google.protobuf" => Of::Message(of),
            _ => Of::Free,
        }
    }
}

/// Looks at one value.
#[derive(Clone)]
struct Look<'a> {
    survey: &'a Survey,
    of: Of,
}

impl<'de> DeserializeSeed<'de> for Look<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        self.survey.one_more()?;
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Look<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut met = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            self.survey.one_more()?;
            let field = match &self.of {
                Of::Message(of) => of.get_field_by_json_name(&name).or_else(|| of.get_field_by_name(&name)),
                Of::Free => None,
            };
            if field.as_ref().is_some_and(|field| !met.insert(field.number())) {
                return Err(self.survey.found(Wrong::Twice(name)));
            }
            let of = field.as_ref().map_or(Of::Free, Of::field);
            map.next_value_seed(Look { survey: self.survey, of })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self.clone())?.is_some() {}
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}
