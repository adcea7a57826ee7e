//! Output of a task on disk: `stdout.0`, `stdout.1`, … of a bounded size, of which the newest are kept.
//!
//! A full disk must not stop a task: what cannot be written is read all the same, counted, and gone.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::protocol::LogSettings;

/// Pause before a disk that took nothing is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The files of one stream.
#[derive(Debug)]
pub(crate) struct RotatedLog {
    settings: LogSettings,
    stream: String,
    index: u64,
    size: u64,
    /// Where in the file the line begins that is not ended yet: `size` when there is none.
    line_start: u64,
    file: Option<File>,
    retry: Option<Instant>,
    lost: u64,
    why: Option<String>,
}

impl RotatedLog {
    /// Goes on where an earlier run of the task ended.
    pub(crate) fn open(settings: &LogSettings, stream: &str) -> Self {
        let index = indexes(&settings.dir, stream).last().copied().unwrap_or(0);
        Self {
            settings: settings.clone(),
            stream: stream.to_owned(),
            index,
            size: 0,
            line_start: 0,
            file: None,
            retry: None,
            lost: 0,
            why: None,
        }
    }

    /// Writes all of `bytes`, or counts what is lost.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) {
        if self.retry.is_some_and(|at| Instant::now() < at) {
            self.lost += bytes.len() as u64;
            return;
        }
        self.retry = None;
        while !bytes.is_empty() {
            match self.write_some(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.lost += bytes.len() as u64;
                    self.why = Some(error.to_string());
                    self.file = None;
                    self.retry = Some(Instant::now() + RETRY);
                    return;
                }
            }
        }
    }

    /// What has been lost since this was last asked, and why.
    pub(crate) fn take_lost(&mut self) -> Option<(u64, String)> {
        // While the disk is full the sum grows: one event when it is over, or when the stream ends.
        if self.lost == 0 || self.retry.is_some_and(|at| Instant::now() < at) {
            return None;
        }
        Some((
            std::mem::take(&mut self.lost),
            self.why.take().unwrap_or_default(),
        ))
    }

    /// Writes a part of `bytes`, or makes room for it and writes nothing.
    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let limit = self.settings.max_file_bytes.max(1);
        if self.file.is_none() {
            fs::create_dir_all(&self.settings.dir)?;
            let file = append(&self.path(self.index))?;
            self.size = file.metadata()?.len();
            self.line_start = self.size;
            self.file = Some(file);
        }
        let room = usize::try_from(limit.saturating_sub(self.size)).unwrap_or(usize::MAX);
        let mut part = &bytes[..bytes.len().min(room)];
        if part.len() < bytes.len() {
            // A line stays whole when it can: only one that is longer than a file is cut.
            match part.iter().rposition(|byte| *byte == b'\n') {
                Some(end) => part = &part[..=end],
                None if self.line_start > 0 || part.is_empty() => {
                    self.rotate()?;
                    return Ok(0);
                }
                None => {}
            }
        }
        let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let count = file.write(part)?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        if let Some(end) = part[..count].iter().rposition(|byte| *byte == b'\n') {
            self.line_start = self.size + end as u64 + 1;
        }
        self.size += count as u64;
        Ok(count)
    }

    /// Begins the next file, with what there is of an unfinished line.
    fn rotate(&mut self) -> io::Result<()> {
        let head = if (1..self.size).contains(&self.line_start) {
            // A full disk does not take it: then the line is cut, and old files make room.
            self.move_head().ok()
        } else {
            None
        };
        self.size = if head.is_some() {
            self.size - self.line_start
        } else {
            0
        };
        let file = match head {
            Some(file) => file,
            None => append(&self.path(self.index + 1))?,
        };
        self.line_start = 0;
        self.index += 1;
        self.file = Some(file);
        let keep = u64::from(self.settings.max_files.max(1));
        for old in indexes(&self.settings.dir, &self.stream) {
            if old + keep <= self.index {
                let _ = fs::remove_file(self.path(old));
            }
        }
        Ok(())
    }

    /// Moves the unfinished line into the next file. That one appears when the line is gone from
    /// this one: a reader who has seen the head knows by how far it is beyond the end.
    fn move_head(&self) -> io::Result<File> {
        let current = self.path(self.index);
        let next = self.settings.dir.join(format!("{}.next", self.stream));
        let moved = (|| {
            match fs::remove_file(&next) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut from = File::open(&current)?;
            from.seek(SeekFrom::Start(self.line_start))?;
            let mut file = append(&next)?;
            io::copy(&mut from, &mut file)?;
            let writable = OpenOptions::new().write(true).open(&current)?;
            writable.set_len(self.line_start)?;
            fs::rename(&next, self.path(self.index + 1))?;
            Ok(file)
        })();
        if moved.is_err() {
            let _ = fs::remove_file(&next);
        }
        moved
    }

    fn path(&self, index: u64) -> PathBuf {
        self.settings.dir.join(format!("{}.{index}", self.stream))
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// The numbers of the files of `stream` in `dir`, oldest first.
pub fn indexes(dir: &Path, stream: &str) -> Vec<u64> {
    let mut indexes: Vec<u64> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let (name, index) = name.to_str()?.rsplit_once('.')?;
            (name == stream).then(|| index.parse().ok())?
        })
        .collect();
    indexes.sort_unstable();
    indexes
}

/// Reads a stream of a task from its oldest kept byte on, over rotations.
#[derive(Debug)]
pub struct LogReader {
    dir: PathBuf,
    stream: String,
    at: Option<(u64, File)>,
}

impl LogReader {
    /// A reader of `stdout` or `stderr` in `dir`, which may be empty or not exist yet.
    pub fn new(dir: &Path, stream: &str) -> Self {
        Self {
            dir: dir.to_owned(),
            stream: stream.to_owned(),
            at: None,
        }
    }

    /// Passes over all but about the last `bytes`.
    ///
    /// # Errors
    /// What the disk says.
    pub fn skip_to_last(&mut self, bytes: u64) -> io::Result<()> {
        let mut left = bytes;
        for index in indexes(&self.dir, &self.stream).into_iter().rev() {
            let Some(mut file) = self.open(index)? else {
                break;
            };
            let size = file.metadata()?.len();
            let from = size.saturating_sub(left);
            file.seek(SeekFrom::Start(from))?;
            self.at = Some((index, file));
            left = left.saturating_sub(size);
            if left == 0 {
                break;
            }
        }
        Ok(())
    }

    /// The next bytes; none while there are no more. What was rotated away before it was read is missing.
    ///
    /// # Errors
    /// What the disk says.
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some((index, file)) = &mut self.at {
                // Looked for before the read: a file that has a successor does not grow any more.
                let next = indexes(&self.dir, &self.stream)
                    .into_iter()
                    .find(|other| other > index);
                let count = file.read(into)?;
                if count > 0 {
                    return Ok(count);
                }
                let Some(next) = next else { return Ok(0) };
                // What was read beyond the end is the head of a line that begins the next file.
                let seen = file
                    .stream_position()?
                    .saturating_sub(file.metadata()?.len());
                self.at = self.open(next)?.map(|file| (next, file));
                if let Some((_, file)) = &mut self.at {
                    file.seek(SeekFrom::Start(seen))?;
                }
                continue;
            }
            let Some(first) = indexes(&self.dir, &self.stream).first().copied() else {
                return Ok(0);
            };
            self.at = self.open(first)?.map(|file| (first, file));
        }
    }

    fn open(&self, index: u64) -> io::Result<Option<File>> {
        match File::open(self.dir.join(format!("{}.{index}", self.stream))) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(dir: &Path, max_files: u32, max_file_bytes: u64) -> LogSettings {
        LogSettings {
            dir: dir.to_owned(),
            max_files,
            max_file_bytes,
        }
    }

    fn read(dir: &Path, name: &str) -> String {
        fs::read_to_string(dir.join(name)).unwrap()
    }

    #[test]
    fn files_are_bounded_in_size_and_number_and_lines_stay_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = RotatedLog::open(&settings(dir.path(), 2, 10), "stdout");
        log.write(b"one\ntwo\nthree\nfour\nfive\n");
        assert_eq!(indexes(dir.path(), "stdout"), [1, 2]);
        assert_eq!(read(dir.path(), "stdout.1"), "three\n");
        assert_eq!(read(dir.path(), "stdout.2"), "four\nfive\n");
        // A line longer than a file is cut.
        log.write(b"0123456789abc\n");
        assert_eq!(read(dir.path(), "stdout.3"), "0123456789");
        assert_eq!(read(dir.path(), "stdout.4"), "abc\n");
        assert!(log.take_lost().is_none());
    }

    #[test]
    fn a_line_that_comes_in_pieces_stays_whole_and_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = RotatedLog::open(&settings(dir.path(), 3, 10), "stdout");
        let mut reader = LogReader::new(dir.path(), "stdout");
        log.write(b"one\ntw");
        assert_eq!(rest(&mut reader), "one\ntw");
        log.write(b"o+two\nthr");
        assert_eq!(read(dir.path(), "stdout.0"), "one\n");
        assert_eq!(read(dir.path(), "stdout.1"), "two+two\n");
        assert_eq!(read(dir.path(), "stdout.2"), "thr");
        assert_eq!(rest(&mut reader), "o+two\nthr");
        // It fills the file: cut where nothing else can be done.
        log.write(b"ee-and-more\n");
        assert_eq!(indexes(dir.path(), "stdout"), [1, 2, 3]);
        assert_eq!(read(dir.path(), "stdout.2"), "three-and-");
        assert_eq!(read(dir.path(), "stdout.3"), "more\n");
        assert_eq!(rest(&mut reader), "ee-and-more\n");
        assert!(log.take_lost().is_none());
    }

    #[test]
    fn a_restarted_task_goes_on_in_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path(), 3, 100);
        RotatedLog::open(&settings, "stderr").write(b"first\n");
        RotatedLog::open(&settings, "stderr").write(b"second\n");
        assert_eq!(read(dir.path(), "stderr.0"), "first\nsecond\n");
        fs::write(dir.path().join("stderr.x"), "").unwrap();
        fs::write(dir.path().join("stdout.9"), "").unwrap();
        assert_eq!(indexes(dir.path(), "stderr"), [0]);
    }

    #[test]
    fn what_a_disk_does_not_take_is_counted_and_does_not_stop_anything() {
        let dir = tempfile::tempdir().unwrap();
        let blocked = dir.path().join("logs");
        fs::write(&blocked, "a file where the directory should be").unwrap();
        let mut log = RotatedLog::open(&settings(&blocked, 1, 100), "stdout");
        log.write(b"12345");
        log.write(b"678");
        // While it waits, nothing is told.
        assert!(log.take_lost().is_none());
        log.retry = None;
        let (lost, why) = log.take_lost().unwrap();
        assert_eq!(lost, 8);
        assert!(!why.is_empty());
        fs::remove_file(&blocked).unwrap();
        log.write(b"again");
        assert_eq!(read(&blocked, "stdout.0"), "again");
    }

    fn rest(reader: &mut LogReader) -> String {
        let (mut text, mut bytes) = (Vec::new(), [0; 7]);
        loop {
            match reader.read(&mut bytes).unwrap() {
                0 => return String::from_utf8(text).unwrap(),
                count => text.extend_from_slice(&bytes[..count]),
            }
        }
    }

    #[test]
    fn a_reader_follows_over_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = RotatedLog::open(&settings(dir.path(), 3, 10), "stdout");
        let mut reader = LogReader::new(dir.path(), "stdout");
        assert_eq!(rest(&mut reader), "");
        log.write(b"one\ntwo\n");
        assert_eq!(rest(&mut reader), "one\ntwo\n");
        log.write(b"three\nfour\nfive\n");
        assert_eq!(rest(&mut reader), "three\nfour\nfive\n");
        // Far behind, it goes on with what is still there.
        for _ in 0..9 {
            log.write(b"123456789\n");
        }
        assert_eq!(rest(&mut reader), "123456789\n".repeat(3));
    }

    #[test]
    fn a_reader_can_begin_near_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = RotatedLog::open(&settings(dir.path(), 3, 10), "stdout");
        log.write(b"aaaaaaaaa\nbbbbbbbbb\nccccccccc\n");
        for (bytes, expected) in [
            (4, "ccc\n"),
            (12, "b\nccccccccc\n"),
            (1000, "aaaaaaaaa\nbbbbbbbbb\nccccccccc\n"),
        ] {
            let mut reader = LogReader::new(dir.path(), "stdout");
            reader.skip_to_last(bytes).unwrap();
            assert_eq!(rest(&mut reader), expected);
        }
    }
}
