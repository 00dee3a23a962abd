//! The `influxdb` sink.
