//! Attribute and property values: JSON in, JSON out, comparison, sizes.
//!
//! Reading is strict where JSON is loose: a member that occurs twice is an error, integers outside 64 bits become floats, -0 becomes
//! 0, NaN and infinity cannot occur. Objects are kept sorted by member name, so that equal values have equal bytes.

use crate::proto::{List, Member, Object, Value, value::Kind};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use std::fmt;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// JSON nested deeper than this is refused while it is being read.
const MAX_PARSE_DEPTH: usize = 100;

impl Value {
    /// A value of this kind.
    pub fn of(kind: Kind) -> Value {
        Value { kind: Some(kind) }
    }

    /// Null.
    pub fn null() -> Value {
        Value::of(Kind::Null(true))
    }

    /// A string.
    pub fn string(text: impl Into<String>) -> Value {
        Value::of(Kind::String(text.into()))
    }

    /// An integer.
    pub fn integer(number: i64) -> Value {
        Value::of(Kind::Integer(number))
    }

    /// A float; -0 becomes 0, what is not finite becomes null.
    pub fn float(number: f64) -> Value {
        if number.is_finite() { Value::of(Kind::Float(number + 0.0)) } else { Value::null() }
    }

    /// A boolean.
    pub fn boolean(value: bool) -> Value {
        Value::of(Kind::Boolean(value))
    }

    /// A timestamp, milliseconds since 1970.
    pub fn timestamp(ms: i64) -> Value {
        Value::of(Kind::Timestamp(ms))
    }

    /// A list.
    pub fn list(items: Vec<Value>) -> Value {
        Value::of(Kind::List(List { items }))
    }

    /// An object; members are sorted, of two with one name the later stays.
    pub fn object(members: impl IntoIterator<Item = (String, Value)>) -> Value {
        Value::of(Kind::Object(object(members)))
    }

    /// Is it null (or without a kind, which newer writers could produce)?
    pub fn is_null(&self) -> bool {
        matches!(self.kind, None | Some(Kind::Null(_)))
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.kind {
            Some(Kind::String(text)) => Some(text),
            _ => None,
        }
    }

    /// The members of an object.
    pub fn as_object(&self) -> Option<&Object> {
        match &self.kind {
            Some(Kind::Object(object)) => Some(object),
            _ => None,
        }
    }

    /// The items of a list.
    pub fn as_list(&self) -> Option<&[Value]> {
        match &self.kind {
            Some(Kind::List(list)) => Some(&list.items),
            _ => None,
        }
    }

    /// Levels of nesting: 0 for a scalar, 1 for a list of scalars.
    pub fn depth(&self) -> usize {
        match &self.kind {
            Some(Kind::List(list)) => 1 + list.items.iter().map(Value::depth).max().unwrap_or(0),
            Some(Kind::Object(object)) => {
                1 + object
                    .members
                    .iter()
                    .filter_map(|member| member.value.as_ref())
                    .map(Value::depth)
                    .max()
                    .unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// What its kind is called in messages to users.
    pub fn type_name(&self) -> &'static str {
        match &self.kind {
            None | Some(Kind::Null(_)) => "null",
            Some(Kind::Boolean(_)) => "boolean",
            Some(Kind::Integer(_)) => "integer",
            Some(Kind::Float(_)) => "float",
            Some(Kind::String(_)) => "string",
            Some(Kind::Timestamp(_)) => "timestamp",
            Some(Kind::List(_)) => "list",
            Some(Kind::Object(_)) => "object",
        }
    }
}

/// An object with its members sorted; of two with one name the later stays.
pub fn object(members: impl IntoIterator<Item = (String, Value)>) -> Object {
    let sorted: std::collections::BTreeMap<String, Value> = members.into_iter().collect();
    Object { members: sorted.into_iter().map(|(name, value)| Member { name, value: Some(value) }).collect() }
}

impl Object {
    /// The value of a member.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let index = self.members.binary_search_by(|member| member.name.as_str().cmp(name)).ok()?;
        self.members.get(index)?.value.as_ref()
    }

    /// Takes a member out.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        let index = self.members.binary_search_by(|member| member.name.as_str().cmp(name)).ok()?;
        self.members.remove(index).value
    }

    /// The members as pairs.
    pub fn into_pairs(self) -> impl Iterator<Item = (String, Value)> {
        self.members.into_iter().map(|member| (member.name, member.value.unwrap_or_else(Value::null)))
    }

    /// The members as borrowed pairs.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.members.iter().filter_map(|member| Some((member.name.as_str(), member.value.as_ref()?)))
    }
}

/// RFC 3339 text of milliseconds since 1970, as all public JSON shows times.
pub fn format_time(ms: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| ms.to_string())
}

/// Milliseconds since 1970 of RFC 3339 text.
pub fn parse_time(text: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos().div_euclid(1_000_000)).ok()
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.kind {
            None | Some(Kind::Null(_)) => serializer.serialize_unit(),
            Some(Kind::Boolean(value)) => serializer.serialize_bool(*value),
            Some(Kind::Integer(number)) => serializer.serialize_i64(*number),
            Some(Kind::Float(number)) => serializer.serialize_f64(*number),
            Some(Kind::String(text)) => serializer.serialize_str(text),
            Some(Kind::Timestamp(ms)) => serializer.serialize_str(&format_time(*ms)),
            Some(Kind::List(list)) => {
                let mut seq = serializer.serialize_seq(Some(list.items.len()))?;
                for item in &list.items {
                    seq.serialize_element(item)?;
                }
                seq.end()
            }
            Some(Kind::Object(object)) => object.serialize(serializer),
        }
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.members.len()))?;
        for (name, value) in self.pairs() {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        de::DeserializeSeed::deserialize(ValueSeed { depth: 0 }, deserializer)
    }
}

struct ValueSeed {
    depth: usize,
}

impl<'de> de::DeserializeSeed<'de> for ValueSeed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.depth > MAX_PARSE_DEPTH {
            return Err(de::Error::custom(format_args!("nested deeper than {MAX_PARSE_DEPTH} levels")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::null())
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::boolean(value))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::integer(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(i64::try_from(number).map_or_else(|_| Value::float(number as f64), Value::integer))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::string(text))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::string(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(ValueSeed { depth: self.depth + 1 })? {
            items.push(item);
        }
        Ok(Value::list(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members: Vec<Member> = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(ValueSeed { depth: self.depth + 1 })?;
            members.push(Member { name, value: Some(value) });
        }
        members.sort_by(|left, right| left.name.cmp(&right.name));
        if let Some([twice, _]) = members.array_windows::<2>().find(|[left, right]| left.name == right.name) {
            return Err(de::Error::custom(format_args!("member `{}` occurs twice", twice.name)));
        }
        Ok(Value::of(Kind::Object(Object { members })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Value, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn json_comes_back_sorted_and_equal() {
        let value = parse(r#"{"b":[1,2.5,null,true],"a":{"x":"y"}}"#).unwrap();
        assert_eq!(serde_json::to_string(&value).unwrap(), r#"{"a":{"x":"y"},"b":[1,2.5,null,true]}"#);
        assert_eq!(value.depth(), 2);
        assert_eq!(value, parse(r#"{"a":{"x":"y"},"b":[1,2.5,null,true]}"#).unwrap());
    }

    #[test]
    fn odd_numbers() {
        assert_eq!(parse("-0").unwrap(), Value::float(0.0));
        assert_eq!(serde_json::to_string(&parse("-0.0").unwrap()).unwrap(), "0.0");
        assert_eq!(parse("9223372036854775807").unwrap(), Value::integer(i64::MAX));
        assert_eq!(parse("18446744073709551615").unwrap(), Value::float(18446744073709551615.0));
        assert!(parse("1e999").is_err());
        assert!(parse("NaN").is_err());
    }

    #[test]
    fn a_member_that_occurs_twice_is_an_error() {
        let error = parse(r#"{"a":{"x":1,"x":2}}"#).unwrap_err().to_string();
        assert!(error.contains("`x` occurs twice"), "{error}");
    }

    #[test]
    fn nesting_is_bounded() {
        assert!(parse(&format!("{}1{}", "[".repeat(101), "]".repeat(101))).is_err());
        assert!(parse(&format!("{}1{}", "[".repeat(50), "]".repeat(50))).is_ok());
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(format_time(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(parse_time("2023-11-14T23:13:20.123+01:00"), Some(1_700_000_000_123));
        assert_eq!(parse_time("2023-02-30T00:00:00Z"), None);
    }
}
