//! Settings with a connector: its key stands beside the other keys. (serde's `flatten` would do it too, but it loses where everything
//! stands.)

use serde::Deserializer;
use serde::de::{self, DeserializeSeed, IntoDeserializer, MapAccess, VariantAccess};
use serde_json::Value;

/// Reads and writes a struct of a connector and what stands beside it, and describes its keys.
macro_rules! beside {
    (
        $settings:ident { connector: $config:ident, records: $records:ident },
        keys: $keys:ident = $own:expr,
        one: $one:literal, two: $two:literal, description: $description:literal
    ) => {
        /// All keys: connectors, and what stands beside them.
        const $keys: &[&str] = &{
            const OWN: &[&str] = &$own;
            let mut keys = [""; $config::NAMES.len() + OWN.len()];
            let mut i = 0;
            while i < keys.len() {
                let connectors = $config::NAMES.len();
                keys[i] = if i < connectors { $config::NAMES[i] } else { OWN[i - connectors] };
                i += 1;
            }
            keys
        };

        impl connector::Connector for $config {
            const NAMES: &'static [&'static str] = $config::NAMES;
            const ONE: &'static str = $one;
            const TWO: &'static str = $two;

            fn name(&self) -> &'static str {
                self.name()
            }

            fn read<'de, A: de::VariantAccess<'de>>(name: &str, settings: A) -> Result<Self, A::Error> {
                $config::read(name, settings)
            }
        }

        impl<'de> Deserialize<'de> for $settings {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let (connector, records) = connector::deserialize($keys, deserializer)?;
                let connector: Option<$config> = connector;
                let connector = connector.ok_or_else(|| de::Error::missing_field($config::CHOICES))?;
                Ok(Self { connector, records })
            }
        }

        impl Serialize for $settings {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                #[derive(Serialize)]
                struct Flat<'s> {
                    #[serde(flatten)]
                    connector: &'s $config,
                    #[serde(flatten)]
                    records: &'s $records,
                }
                Flat { connector: &self.connector, records: &self.records }.serialize(serializer)
            }
        }

        impl JsonSchema for $settings {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($settings).into()
            }

            /// The keys beside the connector, and exactly one of the connectors' keys.
            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                let mut schema = $records::json_schema(generator);
                schema.insert("description".into(), $description.into());
                connector::add_choice(&mut schema, &$config::json_schema(generator));
                schema
            }
        }
    };
}

pub(super) use beside;

/// A registry of connectors.
pub(super) trait Connector: Sized {
    const NAMES: &'static [&'static str];
    /// What has one connector, for messages, and two of that.
    const ONE: &'static str;
    const TWO: &'static str;

    fn name(&self) -> &'static str;

    fn read<'de, A: VariantAccess<'de>>(name: &str, settings: A) -> Result<Self, A::Error>;
}

/// The connector, if there is one, and what stands beside it.
pub(super) fn deserialize<'de, C: Connector, R: de::Deserialize<'de>, D: Deserializer<'de>>(
    keys: &'static [&'static str],
    deserializer: D,
) -> Result<(Option<C>, R), D::Error> {
    struct Visitor<C, R>(std::marker::PhantomData<(C, R)>);

    impl<'de, C: Connector, R: de::Deserialize<'de>> de::Visitor<'de> for Visitor<C, R> {
        type Value = (Option<C>, R);

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(C::ONE)
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            let mut connector = None;
            let rest = WithoutConnector { map, connector: &mut connector };
            let records = R::deserialize(de::value::MapAccessDeserializer::new(rest))?;
            Ok((connector, records))
        }
    }

    deserializer.deserialize_struct(C::ONE, keys, Visitor(std::marker::PhantomData))
}

/// The entries but for the connector, which is put aside.
struct WithoutConnector<'c, A, C> {
    map: A,
    connector: &'c mut Option<C>,
}

impl<'de, A: MapAccess<'de>, C: Connector> MapAccess<'de> for WithoutConnector<'_, A, C> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        while let Some(key) = self.map.next_key::<String>()? {
            if !C::NAMES.contains(&key.as_str()) {
                return seed.deserialize(key.into_deserializer()).map(Some);
            }
            let connector = C::read(&key, EntryValue(&mut self.map))?;
            if let Some(first) = self.connector.replace(connector) {
                return Err(de::Error::custom(format!(
                    "{} has one connector, and here are two: `{}` and `{key}`; make {} of them",
                    C::ONE,
                    first.name(),
                    C::TWO
                )));
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

/// The value of the entry whose key has just been read.
struct EntryValue<'m, A>(&'m mut A);

impl<'de, A: MapAccess<'de>> VariantAccess<'de> for EntryValue<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.0.next_value()
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, A::Error> {
        self.0.next_value_seed(seed)
    }

    fn tuple_variant<V: de::Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, A::Error> {
        Err(de::Error::custom("a connector's settings are a mapping"))
    }

    fn struct_variant<V: de::Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, A::Error> {
        Err(de::Error::custom("a connector's settings are a mapping"))
    }
}

/// Adds exactly one of the connectors' keys to the schema of what stands beside them.
pub(super) fn add_choice(schema: &mut schemars::Schema, connectors: &schemars::Schema) {
    let variants = connectors.get("oneOf").and_then(Value::as_array).cloned().unwrap_or_default();
    let one_of: Vec<_> = variants.iter().map(|v| serde_json::json!({ "required": v["required"] })).collect();
    schema.insert("oneOf".into(), one_of.into());
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        let own = std::mem::take(properties);
        for variant in &variants {
            for (name, settings) in variant["properties"].as_object().into_iter().flatten() {
                properties.insert(name.clone(), settings.clone());
            }
        }
        properties.extend(own);
    }
}
