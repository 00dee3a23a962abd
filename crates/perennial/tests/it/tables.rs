//! Static tables: what a stream is joined with.

use crate::support::{Home, code, stderr, stdout};

const JOB: &str = "\
name: plants
sources:
  readings:
    files: { path: ./in, settle: 0s }
    format: json
    schema: plant BIGINT, value BIGINT
tables:
  plants:
    files: { path: ./plants.csv }
    format: { csv: { header: true } }
    schema: id BIGINT NOT NULL, factor BIGINT
  rooms:
    sqlite: { path: ./rooms.db, table: rooms }
    schema: plant BIGINT, floor BIGINT
queries:
  q:
    sql: >
      SELECT r.value * p.factor + coalesce(m.floor, 0) AS n
      FROM readings r JOIN plants p ON r.plant = p.id LEFT JOIN rooms m ON m.plant = r.plant
    sink: { files: { path: out, format: json } }
checkpoint: checkpoint
http: { enabled: false }
";

fn database(home: &Home, sql: &str) {
    rusqlite::Connection::open(home.path("rooms.db")).unwrap().execute_batch(sql).unwrap();
}

#[test]
fn a_stream_is_joined_with_what_the_tables_hold_at_the_moment() {
    let home = Home::new(JOB);
    std::fs::write(home.path("plants.csv"), "id,factor\n1,10\n2,100\n").unwrap();
    database(&home, "CREATE TABLE rooms (plant INTEGER, floor INTEGER); INSERT INTO rooms VALUES (1, 1), (3, 3)");
    let check = home.command(&["check", "job.yaml"]).output().unwrap();
    assert_eq!(code(&check), 0, "{}{}", stdout(&check), stderr(&check));

    let readings = |name: &str| {
        let lines: String = (1..=3).map(|plant| format!("{{\"plant\":{plant},\"value\":5}}\n")).collect();
        std::fs::write(home.path(name), lines).unwrap();
        let ran = home.run();
        assert_eq!(code(&ran), 0, "{}", stderr(&ran));
    };
    readings("in/a.json");
    assert_eq!(home.results("n"), [51, 500], "the third has no factor, and the second no floor");

    std::fs::write(home.path("plants.csv"), "id,factor\n3,1000\n").unwrap();
    database(&home, "UPDATE rooms SET floor = 7");
    readings("in/b.json");
    assert_eq!(home.results("n"), [51, 500, 5007]);
}

#[test]
fn the_check_names_the_table_that_is_not_there() {
    let home = Home::new(JOB);
    database(&home, "CREATE TABLE other (plant INTEGER)");
    let check = home.command(&["check", "job.yaml"]).output().unwrap();
    let said = stdout(&check) + &stderr(&check);
    assert_eq!(code(&check), 1, "{said}");
    for part in
        ["tables.plants", "plants.csv", "(StorageNotFound)", "tables.rooms", "no table `rooms`", "(TargetMissing)"]
    {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
    let checked = home.command(&["check", "--offline", "job.yaml"]).output().unwrap();
    assert_eq!(code(&checked), 0, "{}", stderr(&checked));
}
