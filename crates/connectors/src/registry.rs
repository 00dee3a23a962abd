//! The registry: which sources, tables and sinks there are, one line each.
//!
//! A line gives the key in the job file and the settings type behind it. The settings are the factory, the part of the job file's
//! schema and the documentation, so there is nothing else to register.

use std::sync::Arc;

use perennial_core::sink::SinkFactory;
use perennial_core::source::SourceFactory;
use perennial_core::table::TableFactory;
use schemars::JsonSchema;
use serde::de::{self, EnumAccess, VariantAccess};
use serde::{Deserialize, Deserializer, Serialize};

use crate::format::Format;

macro_rules! registry {
    (
        $(#[$doc:meta])*
        $config:ident opens $factory:ident {
            $($(#[cfg($cfg:meta)])? $name:literal = $variant:ident($settings:ty);)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Serialize, JsonSchema)]
        #[allow(clippy::large_enum_variant, reason = "a handful per job")]
        pub enum $config {
            $(
                $(#[cfg($cfg)])?
                #[doc = concat!("`", $name, ":` in the job file.")]
                #[serde(rename = $name)]
                $variant($settings),
            )*
        }

        impl $config {
            /// All keys, also those that this build leaves out.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// All keys for a message: ``one of `a` `b` ``.
            pub const CHOICES: &'static str = concat!("one of", $(" `", $name, "`"),*);

            /// The key in the job file.
            pub fn name(&self) -> &'static str {
                match self {
                    $($(#[cfg($cfg)])? Self::$variant(_) => $name,)*
                }
            }

            /// What opens it.
            pub fn factory(&self) -> Arc<dyn $factory> {
                match self {
                    $($(#[cfg($cfg)])? Self::$variant(settings) => Arc::new(settings.clone()),)*
                }
            }

            /// Reads the settings that stand behind the key `name`.
            pub fn read<'de, A: VariantAccess<'de>>(name: &str, settings: A) -> Result<Self, A::Error> {
                match name {
                    $($(#[cfg($cfg)])? $name => settings.newtype_variant().map(Self::$variant),)*
                    name if Self::NAMES.contains(&name) => Err(de::Error::custom(left_out(name))),
                    name => Err(de::Error::unknown_variant(name, Self::NAMES)),
                }
            }
        }

        impl<'de> Deserialize<'de> for $config {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl<'de> de::Visitor<'de> for Visitor {
                    type Value = $config;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($config::CHOICES)
                    }

                    fn visit_enum<A: EnumAccess<'de>>(self, entry: A) -> Result<$config, A::Error> {
                        let (name, settings) = entry.variant::<String>()?;
                        $config::read(&name, settings)
                    }
                }
                deserializer.deserialize_enum(stringify!($config), Self::NAMES, Visitor)
            }
        }
    };
}

registry! {
    /// Where a source of a job reads from.
    SourceConfig opens SourceFactory {
        #[cfg(feature = "kafka")]
        "kafka" = Kafka(crate::sources::kafka::KafkaSource);
        "files" = Files(crate::sources::files::FilesSource);
        "rate" = Rate(crate::sources::rate::RateSource);
        "simulate" = Simulate(crate::simulate::SimulateSource);
    }
}

registry! {
    /// Where a table of a job is.
    TableConfig opens TableFactory {
        "files" = Files(crate::tables::files::FilesTable);
        "sqlite" = Sqlite(crate::tables::sqlite::SqliteTable);
        "postgres" = Postgres(crate::tables::postgres::PostgresTable);
    }
}

registry! {
    /// Where a query of a job writes to.
    SinkConfig opens SinkFactory {
        "sqlite" = Sqlite(crate::sinks::sqlite::SqliteSink);
        "postgres" = Postgres(crate::sinks::postgres::PostgresSink);
        "influxdb" = InfluxDb(crate::sinks::influxdb::InfluxDbSink);
        #[cfg(feature = "kafka")]
        "kafka" = Kafka(crate::sinks::kafka::KafkaSink);
        #[cfg(feature = "delta")]
        "delta" = Delta(crate::sinks::delta::DeltaSink);
        "files" = Files(crate::sinks::files::FilesSink);
        "console" = Console(crate::sinks::console::ConsoleSink);
    }
}

impl SourceConfig {
    /// Whether it can read records of this format: Parquet is a format of files.
    pub fn reads(&self, format: &Format) -> bool {
        matches!(self, Self::Files(_)) || !matches!(format, Format::Parquet)
    }

    /// Whether its records are in partitions, each in an order of its own.
    pub fn has_partitions(&self) -> bool {
        self.name() == "kafka"
    }
}

impl TableConfig {
    /// Whether it has records in a format. A database has rows.
    pub fn has_records(&self) -> bool {
        matches!(self, Self::Files(_))
    }
}

/// The message for a connector that exists but is not compiled in.
fn left_out(name: &str) -> String {
    format!(
        "this build has no `{name}`: it was built without the feature `{name}`; use a build that has it, or build it with \
         `cargo build --features {name}`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_key_of_its_own() {
        for names in [SourceConfig::NAMES, TableConfig::NAMES, SinkConfig::NAMES] {
            let mut unique = names.to_vec();
            unique.sort_unstable();
            unique.dedup();
            assert_eq!(unique.len(), names.len());
            assert!(names.iter().all(|n| n.bytes().all(|b| b.is_ascii_lowercase())), "{names:?}");
        }
    }

    #[test]
    fn settings_are_read_from_their_key_and_open_the_factory_of_their_type() {
        let sink: SinkConfig = serde_json::from_str(r#"{"console": {}}"#).unwrap();
        assert_eq!(sink.name(), "console");
        assert!(format!("{:?}", sink.factory()).starts_with("ConsoleSink"), "{:?}", sink.factory());
        let written = serde_json::to_value(&sink).unwrap();
        assert_eq!(written.as_object().unwrap().keys().collect::<Vec<_>>(), ["console"]);
    }

    #[test]
    fn an_unknown_key_lists_the_known_ones() {
        let error = serde_json::from_str::<SinkConfig>(r#"{"sqllite": {}}"#).unwrap_err().to_string();
        assert!(error.contains("sqllite") && error.contains("sqlite"), "{error}");
    }

    #[cfg(not(feature = "kafka"))]
    #[test]
    fn a_connector_that_is_left_out_says_so() {
        let error = serde_json::from_str::<SourceConfig>(r#"{"kafka": {}}"#).unwrap_err().to_string();
        assert!(error.contains("this build has no `kafka`"), "{error}");
    }
}
