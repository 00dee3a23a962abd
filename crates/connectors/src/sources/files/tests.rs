use std::fs;
use std::io::Write;
use std::time::{Duration, SystemTime};

use ::parquet::arrow::ArrowWriter;
use ::parquet::file::properties::WriterProperties;
use arrow::array::{
    Array, ArrayRef, AsArray, Date32Array, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, TimestampMicrosecondType};
use perennial_core::records::{Input, Payload, Position, RecordBlock};

use super::*;
use crate::sources::testing::{World, collect, try_collect};

/// A directory whose files have the ages that a test gives them, and a world in which it is noon on 2026-01-01.
struct Place {
    world: World,
    dir: tempfile::TempDir,
    now: SystemTime,
}

impl Place {
    fn new() -> Self {
        let world = World::new();
        let now = std::time::UNIX_EPOCH + Duration::from_millis(world.env.now_ms() as u64);
        Self { world, dir: tempfile::tempdir().unwrap(), now }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file that was last changed so many seconds ago.
    fn write(&self, name: &str, content: impl AsRef<[u8]>, seconds_ago: i64) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        let at = match u64::try_from(seconds_ago) {
            Ok(ago) => self.now - Duration::from_secs(ago),
            Err(_) => self.now + Duration::from_secs(seconds_ago.unsigned_abs()),
        };
        File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
        path
    }

    fn settings(&self) -> FilesSource {
        FilesSource::new(self.dir.path().to_str().unwrap())
    }

    fn open(&self, settings: FilesSource) -> Box<dyn Source> {
        settings.open(self.world.context()).unwrap()
    }
}

async fn latest(source: &dyn Source, start: Option<&Offset>) -> Option<Offset> {
    source.latest(start, &ReadLimit::default()).await.unwrap()
}

fn offset(entry: u64) -> Offset {
    Offset::encode(&LogOffset { entry }).unwrap()
}

/// All blocks as (file name, byte offset, text), in the order of the file.
fn blocks(inputs: &[Input]) -> Vec<(String, u64, Vec<u8>)> {
    let mut blocks: Vec<_> = inputs
        .iter()
        .map(|input| match input {
            Input::Records(RecordBlock {
                payload: Payload::Lines(text),
                position: Position::File { path, offset },
            }) => (path.rsplit('/').next().unwrap().to_owned(), *offset, text.to_vec()),
            other => panic!("not a block of lines: {other:?}"),
        })
        .collect();
    blocks.sort();
    blocks
}

/// The content of each file, put together from its blocks, which must follow each other and end with whole lines.
fn contents(inputs: &[Input]) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, offset, text) in blocks(inputs) {
        match files.last_mut() {
            Some((last, content)) if *last == name => {
                assert_eq!(content.last(), Some(&b'\n'), "a block before the last ends with a line");
                assert_eq!(content.len() as u64, offset);
                content.extend(text);
            }
            _ => {
                assert_eq!(offset, 0);
                files.push((name, text));
            }
        }
    }
    files
}

fn names(inputs: &[Input]) -> Vec<String> {
    contents(inputs).into_iter().map(|(name, _)| name).collect()
}

#[tokio::test]
async fn each_file_is_read_once_and_the_oldest_first() {
    let place = Place::new();
    place.write("b.json", "{\"b\":1}\n", 50);
    place.write("a.json", "{\"a\":1}\n{\"a\":2}", 60);
    place.write("c.json", "{\"c\":1}\n", 40);
    let settings = FilesSource { max_files_per_batch: Some(2), ..place.settings() };
    let source = place.open(settings.clone());
    let first = latest(&*source, None).await.unwrap();
    assert_eq!(first.as_str(), r#"{"logOffset":0}"#);
    let read = collect(&*source, None, &first, 3).await;
    assert_eq!(
        contents(&read),
        [("a.json".into(), b"{\"a\":1}\n{\"a\":2}".to_vec()), ("b.json".into(), b"{\"b\":1}\n".to_vec())]
    );
    let second = latest(&*source, Some(&first)).await.unwrap();
    assert_eq!(names(&collect(&*source, Some(&first), &second, 1).await), ["c.json"]);
    assert_eq!(latest(&*source, Some(&second)).await, Some(second.clone()), "nothing new");

    place.write("d.json", "{}\n", 30);
    let again = place.open(settings);
    assert_eq!(names(&collect(&*again, None, &second, 2).await), ["a.json", "b.json", "c.json"], "as logged");
    let third = latest(&*again, Some(&second)).await.unwrap();
    assert_eq!(names(&collect(&*again, Some(&second), &third, 1).await), ["d.json"]);
    assert!(again.read(&OffsetRange { start: Some(third.clone()), end: third }, 2).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_not_ready_is_left_alone() {
    let place = Place::new();
    for name in
        [".hidden.json", "_SUCCESS", "x.json.tmp", "y.part", "z.inprogress", "_temporary/in.json", ".git/in.json"]
    {
        place.write(name, "{}\n", 60);
    }
    place.write("empty.json", "", 60);
    place.write("fresh.json", "{\"half", 0);
    place.write("sub/deep.json", "{}\n", 60);
    let source = place.open(place.settings());
    assert_eq!(latest(&*source, None).await, None);
    place.world.clock.advance_ms(999);
    assert_eq!(latest(&*source, None).await, None, "not settled yet");
    place.world.clock.advance_ms(1);
    let end = latest(&*source, None).await.unwrap();
    assert_eq!(names(&collect(&*source, None, &end, 1).await), ["fresh.json"]);

    let place = Place::new();
    place.write("fresh.json", "{}\n", 0);
    place.write("sub/deep/er.json", "{}\n", 60);
    let none = FilesSource { settle: HumanDuration(Duration::ZERO), recursive: true, ..place.settings() };
    let source = place.open(none);
    let end = latest(&*source, None).await.unwrap();
    assert_eq!(names(&collect(&*source, None, &end, 1).await), ["er.json", "fresh.json"]);
}

#[tokio::test]
async fn a_file_from_the_future_is_read_when_it_keeps_still() {
    let place = Place::new();
    place.write("ahead.json", "{}\n", -3600);
    let source = place.open(place.settings());
    assert_eq!(latest(&*source, None).await, None);
    place.world.clock.advance_ms(600);
    place.write("ahead.json", "{}\n{}\n", -3600);
    assert_eq!(latest(&*source, None).await, None, "it changed");
    place.world.clock.advance_ms(600);
    assert_eq!(latest(&*source, None).await, None, "for 600 ms it has kept still");
    place.world.clock.advance_ms(400);
    assert_eq!(latest(&*source, None).await, Some(offset(0)));
}

#[tokio::test]
async fn globs_find_what_a_shell_finds() {
    let place = Place::new();
    for name in
        ["2026-01/a.json", "2026-02/b.json", "2025-12/c.json", "2026-01/d.csv", "2026-01/.e.json", "2026-02/x/f.json"]
    {
        place.write(name, "{}\n", 60);
    }
    for (glob, expected) in [
        ("2026-*/*.json", vec!["a.json", "b.json"]),
        ("**/*.json", vec!["a.json", "b.json", "c.json", "f.json"]),
        ("2026-0[2-9]/*", vec!["b.json", "f.json"]),
        ("2025-12", vec!["c.json"]),
        ("2025-12/c.json", vec!["c.json"]),
        ("*.json", vec![]),
    ] {
        let place_of_glob = World::new();
        let settings = FilesSource::new(place.path(glob).to_str().unwrap());
        let source = settings.open(place_of_glob.context()).unwrap();
        let found = match latest(&*source, None).await {
            Some(end) => names(&collect(&*source, None, &end, 1).await),
            None => vec![],
        };
        assert_eq!(found, expected, "{glob}");
    }
}

#[tokio::test]
async fn odd_names_survive_the_log() {
    let place = Place::new();
    let odd = ["with space.json", "häßlich.json", "100%.json", "a#b?c.json", "[1].json"];
    for name in odd {
        place.write(name, "{}\n", 60);
    }
    let source = place.open(place.settings());
    let end = latest(&*source, None).await.unwrap();
    let again = place.open(place.settings());
    let mut expected = odd.map(str::to_owned);
    expected.sort();
    assert_eq!(names(&collect(&*again, None, &end, 2).await), expected);
    assert_eq!(latest(&*again, Some(&end)).await, Some(end));
}

#[tokio::test]
async fn bytes_limit_a_batch_but_one_file_always_fits() {
    let place = Place::new();
    place.write("1", vec![b'x'; 100], 60);
    place.write("2", vec![b'x'; 10], 50);
    place.write("3", vec![b'x'; 10], 40);
    place.write("4", vec![b'x'; 10], 30);
    let source = place.open(FilesSource { max_bytes_per_batch: Some(25), ..place.settings() });
    let mut end = None;
    for expected in [vec!["1"], vec!["2", "3"], vec!["4"]] {
        let next = latest(&*source, end.as_ref()).await.unwrap();
        assert_eq!(names(&collect(&*source, end.as_ref(), &next, 1).await), expected);
        end = Some(next);
    }
    let place = Place::new();
    place.write("1", "x", 60);
    place.write("2", "x", 50);
    let source = place.open(place.settings());
    let limit = ReadLimit { max_records: Some(10), until: None };
    let end = source.latest(None, &limit).await.unwrap().unwrap();
    assert_eq!(names(&collect(&*source, None, &end, 1).await), ["1"]);
}

#[tokio::test]
async fn an_available_now_run_takes_what_is_there_in_several_batches_and_no_more() {
    let place = Place::new();
    for name in 1..=5 {
        place.write(&name.to_string(), "x", 60 - name);
    }
    let source = place.open(FilesSource { max_files_per_batch: Some(2), ..place.settings() });
    let until = source.newest(None, &ReadLimit::default()).await.unwrap().unwrap();
    place.write("6", "x", 10);
    let limit = ReadLimit { max_records: None, until: Some(until.clone()) };
    let (mut start, mut read) = (None, Vec::new());
    loop {
        let end = source.latest(start.as_ref(), &limit).await.unwrap();
        if end == start {
            break;
        }
        read.push(names(&collect(&*source, start.as_ref(), end.as_ref().unwrap(), 1).await));
        start = end;
    }
    assert_eq!(read, [vec!["1", "2"], vec!["3", "4"], vec!["5"]]);
    assert_eq!(start, Some(until));
    assert_eq!(source.lag(start.as_ref()).await.unwrap().unwrap().partitions, [("files".to_owned(), 1)]);
}

#[tokio::test]
async fn the_log_is_sparks_and_is_compacted() {
    let place = Place::new();
    let settings = FilesSource { max_files_per_batch: Some(1), ..place.settings() };
    let source = place.open(settings.clone());
    let mut end = None;
    for number in 0..125_u64 {
        place.write(&format!("{number:03}.json"), "{}\n", 60);
        end = latest(&*source, end.as_ref()).await;
        assert_eq!(end, Some(offset(number)));
    }
    let log = place.world.log();
    let read = async |name: &str| String::from_utf8(log.read(name).await.unwrap().unwrap().to_vec()).unwrap();
    let at = place.world.env.now_ms() - 60_000;
    let line = |number: u64| {
        let url = url::Url::from_file_path(place.path(&format!("{number:03}.json"))).unwrap();
        format!(r#"{{"path":"{url}","timestamp":{at},"batchId":{number},"size":3}}"#)
    };
    assert_eq!(read("121").await, format!("v1\n{}", line(121)));
    let compact = read("119.compact").await;
    assert_eq!(compact, format!("v1\n{}", (0..120).map(line).collect::<Vec<_>>().join("\n")));
    let mut names: Vec<_> = log.names().await.unwrap();
    names.sort_by_key(|name| name.trim_end_matches(".compact").parse::<u64>().unwrap());
    assert_eq!(names.first().map(String::as_str), Some("19.compact"), "older entries are gone");
    assert_eq!(names.last().map(String::as_str), Some("124"));

    let again = place.open(settings);
    assert_eq!(latest(&*again, end.as_ref()).await, end, "all are known");
    assert_eq!(
        names_of(&*again, 3, 5).await,
        ["004.json", "005.json"],
        "old ranges can be read from the compact entry"
    );
}

async fn names_of(source: &dyn Source, start: u64, end: u64) -> Vec<String> {
    names(&collect(source, Some(&offset(start)), &offset(end), 1).await)
}

/// Entries as a real Spark 4.3 wrote them: no size, plain entries before and after a compact one.
#[tokio::test]
async fn a_log_of_spark_is_continued() {
    let place = Place::new();
    let log = place.world.log();
    let entry = |number: u64| {
        let url = url::Url::from_file_path(place.path(&format!("f{number}.json"))).unwrap();
        format!(r#"{{"path":"{url}","timestamp":1767225600000,"batchId":{number}}}"#)
    };
    for number in 0..=11 {
        place.write(&format!("f{number}.json"), format!("{{\"n\":{number}}}\n"), 60);
        match number {
            9 => {
                let all = (0..=9).map(entry).collect::<Vec<_>>().join("\n");
                log.write("9.compact", format!("v1\n{all}").into()).await.unwrap();
            }
            _ => log.write(&number.to_string(), format!("v1\n{}", entry(number)).into()).await.unwrap(),
        }
    }
    log.write(".11.crc", "crc".into()).await.unwrap();
    place.write("new.json", "{}\n", 60);
    let source = place.open(place.settings());
    assert_eq!(names_of(&*source, 10, 11).await, ["f11.json"]);
    assert_eq!(latest(&*source, Some(&offset(10))).await, Some(offset(11)), "logged, but in no batch yet");
    assert_eq!(latest(&*source, Some(&offset(11))).await, Some(offset(12)));
    assert_eq!(names_of(&*source, 11, 12).await, ["new.json"]);
}

#[tokio::test]
async fn a_damaged_log_is_an_error_that_names_the_entry() {
    for (name, content, part) in [
        ("1", "v1\n{}", "entry 0 of the log of files is missing"),
        ("0", "v2\n{}", "its version is `v2`"),
        ("0", "v1\nnonsense", "the line `nonsense`"),
    ] {
        let place = Place::new();
        place.world.log().write(name, content.into()).await.unwrap();
        let error = place.open(place.settings()).latest(None, &ReadLimit::default()).await.unwrap_err();
        assert_eq!(error.class(), class::CHECKPOINT_CORRUPT);
        assert!(error.to_string().contains(part), "{error}");
    }
    let place = Place::new();
    let error = place.open(place.settings()).latest(Some(&offset(3)), &ReadLimit::default()).await.unwrap_err();
    assert_eq!(error.class(), class::CHECKPOINT_CORRUPT, "an offset beyond the log");
}

#[tokio::test]
async fn exactly_the_logged_bytes_are_read() {
    let place = Place::new();
    let path = place.write("a.json", "{\"a\":1}\n", 60);
    let source = place.open(place.settings());
    let end = latest(&*source, None).await.unwrap();
    File::options().append(true).open(&path).unwrap().write_all(b"{\"a\":2}\n").unwrap();
    assert_eq!(contents(&collect(&*source, None, &end, 1).await), [("a.json".into(), b"{\"a\":1}\n".to_vec())]);
    fs::write(&path, "{}").unwrap();
    let error = try_collect(&*source, None, &end, 1).await.unwrap_err();
    assert_eq!(error.class(), class::DATA_LOSS);
    assert!(error.to_string().contains("a.json has 2 bytes now and had 8"), "{error}");
    fs::remove_file(&path).unwrap();
    let error = try_collect(&*source, None, &end, 1).await.unwrap_err();
    assert_eq!(error.class(), class::DATA_LOSS);
    assert!(error.to_string().contains("a.json is gone"), "{error}");
}

#[tokio::test]
async fn big_files_are_cut_at_line_ends_for_all_cores() {
    let place = Place::new();
    let mut text = Vec::new();
    for number in 0..60_000_u32 {
        writeln!(text, "{{\"number\":{number},\"text\":\"{}\"}}", "x".repeat((number % 257) as usize)).unwrap();
    }
    text.extend_from_slice(b"{\"last\":\"without an end\"}");
    place.write("big.json", &text, 60);
    let source = place.open(place.settings());
    let end = latest(&*source, None).await.unwrap();
    let range = OffsetRange { start: None, end: end.clone() };
    assert_eq!(source.read(&range, 3).await.unwrap().len(), 3);
    for parallelism in [1, 3, 100] {
        let read = collect(&*source, None, &end, parallelism).await;
        assert!(read.len() > 3);
        assert_eq!(contents(&read), [("big.json".to_owned(), text.clone())]);
    }
    // A replay gives the same blocks in the same streams.
    let (once, twice) = (collect(&*source, None, &end, 2).await, collect(&*source, None, &end, 2).await);
    assert!(once.iter().zip(&twice).all(|(a, b)| blocks(std::slice::from_ref(a)) == blocks(std::slice::from_ref(b))));
}

#[tokio::test]
async fn lines_longer_than_a_block_are_delivered_whole() {
    const BLOCK: usize = 2 << 20;
    // Lines that end exactly at, just before and just behind the borders of blocks, and ones that span several.
    for lengths in [
        vec![BLOCK, 10],
        vec![BLOCK - 1, 10],
        vec![BLOCK + 1, 10],
        vec![3, 5 * BLOCK, 3, 2 * BLOCK + 7, 1],
        vec![BLOCK * 3],
    ] {
        let mut text = Vec::new();
        for (at, length) in lengths.iter().enumerate() {
            text.extend(std::iter::repeat_n(b'a' + at as u8, length - 1));
            text.push(b'\n');
        }
        let place = Place::new();
        place.write("long.json", &text, 60);
        place.write("unended.json", &text[..text.len() - 1], 60);
        let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        zipped.write_all(&text).unwrap();
        place.write("zipped.json.gz", zipped.finish().unwrap(), 60);
        let source = place.open(place.settings());
        let end = latest(&*source, None).await.unwrap();
        let read = collect(&*source, None, &end, 2).await;
        for (_, _, block) in blocks(&read) {
            let whole = block
                .strip_suffix(b"\n")
                .unwrap_or(&block)
                .split(|b| *b == b'\n')
                .all(|line| line.iter().all(|b| b == &line[0]) && lengths.contains(&(line.len() + 1)));
            assert!(whole, "lines are whole");
        }
        let found = contents(&read);
        assert_eq!(found[0].1, text);
        assert_eq!(found[1].1, text[..text.len() - 1]);
        assert_eq!(found[2].1, text);
    }
}

#[tokio::test]
async fn compressed_files_are_read_as_they_were_before() {
    let place = Place::new();
    let text: Vec<u8> = (0..300_000_u32).flat_map(|n| format!("{{\"n\":{n}}}\n").into_bytes()).collect();
    let gzip = |text: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    };
    let half = text.len() / 2;
    // Two members one after the other are one file, as `cat a.gz b.gz` makes it.
    place.write("a.json.gz", [gzip(&text[..half]), gzip(&text[half..])].concat(), 60);
    let frames = [zstd::encode_all(&text[..half], 1).unwrap(), zstd::encode_all(&text[half..], 1).unwrap()];
    place.write("b.json.zst", frames.concat(), 60);
    let source = place.open(place.settings());
    let end = latest(&*source, None).await.unwrap();
    let read = contents(&collect(&*source, None, &end, 2).await);
    assert_eq!(read.len(), 2);
    assert!(read.iter().all(|(_, content)| *content == text));

    let place = Place::new();
    let whole = gzip(&text);
    place.write("cut.json.gz", &whole[..whole.len() / 2], 60);
    let source = place.open(place.settings());
    let end = latest(&*source, None).await.unwrap();
    let error = try_collect(&*source, None, &end, 1).await.unwrap_err();
    assert_eq!(error.class(), class::MALFORMED_RECORD);
    assert!(error.to_string().contains("cut.json.gz does not decompress (gzip)"), "{error}");
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_named() {
    let world = World::new();
    for path in ["/nowhere/at/all", "/nowhere/*.json", "/nowhere/**/*.json"] {
        let source = FilesSource::new(path).open(world.context()).unwrap();
        for error in [source.check().await.unwrap_err(), source.latest(None, &ReadLimit::default()).await.unwrap_err()]
        {
            assert_eq!(error.class(), class::STORAGE_NOT_FOUND, "{path}");
            assert!(error.to_string().contains("/nowhere"), "{error}");
        }
    }
    for (path, part) in [("s3://bucket/x", "`s3` is not a local path"), ("", "it is empty"), ("/a/[", "not a glob")] {
        let error = FilesSource::new(path).open(world.context()).err().unwrap();
        assert_eq!(error.class(), class::CONFIG_INVALID);
        assert!(error.to_string().contains(part), "{error}");
    }
    let zero = FilesSource { max_files_per_batch: Some(0), ..FilesSource::new("/tmp") };
    assert!(zero.open(world.context()).err().unwrap().to_string().contains("at least 1"));
}

#[test]
fn missing_rights_name_the_path_and_the_user() {
    let error = io_error("list", Path::new("/secret"), io::ErrorKind::PermissionDenied.into());
    assert_eq!(error.class(), class::STORAGE_PERMISSION_DENIED);
    let message = error.to_string();
    assert!(message.contains("may not list /secret"), "{message}");
    assert!(message.contains(&format!("user {}", user())) && !user().is_empty(), "{message}");
}

/// Root may read everything, so this needs another user to mean anything; as root it checks that nothing is refused.
#[cfg(unix)]
#[tokio::test]
async fn a_directory_without_rights_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    place.write("locked/a.json", "{}\n", 60);
    let locked = place.path("locked");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
    let may_read = fs::read_dir(&locked).is_ok();
    let settings = FilesSource { recursive: true, ..place.settings() };
    let result = place.open(settings).check().await;
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o700)).unwrap();
    match result {
        Ok(()) => assert!(may_read),
        Err(error) => {
            assert!(!may_read);
            assert_eq!(error.class(), class::STORAGE_PERMISSION_DENIED);
            assert!(error.to_string().contains("locked"), "{error}");
        }
    }
}

#[tokio::test]
async fn parquet_gives_the_columns_that_the_query_uses() {
    let place = Place::new();
    let rows = RecordBatch::try_from_iter([
        ("id", Arc::new(Int32Array::from_iter_values(0..50_000)) as ArrayRef),
        ("unused", Arc::new(Date32Array::from_iter_values(0..50_000)) as ArrayRef),
        ("Name", Arc::new(StringArray::from_iter_values((0..50_000).map(|n| format!("n{n}")))) as ArrayRef),
        ("at", Arc::new(TimestampMillisecondArray::from_iter_values(0..50_000).with_timezone("UTC")) as ArrayRef),
    ])
    .unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(20_000)).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), Some(properties)).unwrap();
    writer.write(&rows).unwrap();
    place.write("rows.parquet", writer.into_inner().unwrap(), 60);

    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let mut world = World::new();
    world.schema = Arc::new(Schema::new(vec![
        Field::new("at", utc, true),
        Field::new("name", DataType::Utf8, true),
        Field::new("id", DataType::Int64, false),
        Field::new("absent", DataType::Utf8, true),
    ]));
    let open = |world: &World| place.settings().open(SourceContext { rows: true, ..world.context() }).unwrap();
    let source = open(&world);
    let end = latest(&*source, None).await.unwrap();
    let range = OffsetRange { start: None, end: end.clone() };
    assert_eq!(source.read(&range, 8).await.unwrap().len(), 3, "a row group each");
    let mut read: Vec<_> = collect(&*source, None, &end, 2)
        .await
        .into_iter()
        .map(|input| match input {
            Input::Rows(rows, Position::File { path, offset }) if path.ends_with("/rows.parquet") => (offset, rows),
            other => panic!("not rows: {other:?}"),
        })
        .collect();
    read.sort_by_key(|(offset, _)| *offset);
    let mut next = 0;
    for (offset, rows) in read {
        assert_eq!(offset, next);
        let names: Vec<_> = rows.schema().fields().iter().map(|f| f.name().clone()).collect();
        assert_eq!(names, ["at", "name", "id", "absent"]);
        for row in 0..rows.num_rows() {
            let number = (next + row as u64) as i64;
            assert_eq!(rows.column(0).as_primitive::<TimestampMicrosecondType>().value(row), number * 1000);
            assert_eq!(rows.column(1).as_string::<i32>().value(row), format!("n{number}"));
            assert_eq!(rows.column(2).as_primitive::<Int64Type>().value(row), number);
        }
        assert_eq!(rows.column(3).null_count(), rows.num_rows());
        next += rows.num_rows() as u64;
    }
    assert_eq!(next, 50_000);

    // count(*) uses no column at all.
    let none = World::new();
    let source = open(&none);
    latest(&*source, None).await.unwrap();
    let rows: usize = collect(&*source, None, &end, 1)
        .await
        .into_iter()
        .map(|input| match input {
            Input::Rows(rows, _) => rows.num_rows(),
            Input::Records(_) => panic!("not rows"),
        })
        .sum();
    assert_eq!(rows, 50_000);

    // A type that does not fit is an error that says so.
    let mut wrong = World::new();
    wrong.schema = Arc::new(Schema::new(vec![Field::new("name", DataType::Int32, true)]));
    let source = open(&wrong);
    latest(&*source, None).await.unwrap();
    let error = try_collect(&*source, None, &end, 1).await.unwrap_err();
    assert_eq!(error.class(), class::SCHEMA);
    assert!(error.to_string().contains("the column name is Utf8 in the file and Int32 in the schema"), "{error}");
}

#[tokio::test]
async fn a_parquet_file_is_read_as_it_was_logged_and_nonsense_is_refused() {
    let place = Place::new();
    let rows = RecordBatch::try_from_iter([("id", Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef)]).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), None).unwrap();
    writer.write(&rows).unwrap();
    let path = place.write("rows.parquet", writer.into_inner().unwrap(), 60);
    let mut world = World::new();
    world.schema = rows.schema();
    let source = place.settings().open(SourceContext { rows: true, ..world.context() }).unwrap();
    let end = latest(&*source, None).await.unwrap();
    File::options().append(true).open(&path).unwrap().write_all(b"something behind it").unwrap();
    let read = collect(&*source, None, &end, 1).await;
    assert!(matches!(&read[..], [Input::Rows(read, _)] if read.columns() == rows.columns()));

    let place = Place::new();
    place.write("text.parquet", "this is not a Parquet file, as one can see", 60);
    let source = place.settings().open(SourceContext { rows: true, ..place.world.context() }).unwrap();
    let end = latest(&*source, None).await.unwrap();
    let error = try_collect(&*source, None, &end, 1).await.unwrap_err();
    assert_eq!(error.class(), class::MALFORMED_RECORD);
    assert!(error.to_string().contains("text.parquet cannot be read as Parquet"), "{error}");
}

#[test]
fn settings_have_defaults() {
    let read: FilesSource = serde_json::from_str(r#"{"path": "./data"}"#).unwrap();
    assert_eq!(read, FilesSource::new("./data"));
    assert_eq!(read.settle.0, Duration::from_secs(1));
    assert!(serde_json::from_str::<FilesSource>(r#"{"path": "x", "max_files": 1}"#).is_err());
}
