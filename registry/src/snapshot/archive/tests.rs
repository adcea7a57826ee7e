use proptest::prelude::*;

use super::*;
use crate::{
    command::{Command, KvCommand},
    model::KvEntry,
    replica::{Committed, Replica},
};

/// A name and what is in it.
type File = (String, Vec<u8>);

fn archive() -> (Vec<u8>, ArchiveMeta) {
    let mut replica = Replica::new();
    let entry = KvEntry {
        key: "a".into(),
        value: vec![7; 5000].into(),
        ..KvEntry::default()
    };
    let command = Command::Kv(KvCommand::Set { entry }).encode();
    replica
        .apply(&[Committed {
            index: 9,
            command: Some(command),
        }])
        .unwrap();
    let mut state = Vec::new();
    let size = write_state(&replica.registry().view(), 2, &mut state).unwrap();
    assert_eq!(size, state.len() as u64);
    let meta = ArchiveMeta {
        version: 1,
        id: "2-9-1".into(),
        index: 9,
        term: 2,
        size,
        ..ArchiveMeta::default()
    };
    let mut out = Vec::new();
    write(&mut out, &meta, &state[..]).unwrap();
    (out, meta)
}

fn read_all(bytes: &[u8]) -> Result<(ArchiveMeta, Vec<Table>), ArchiveError> {
    let mut state = Vec::new();
    let meta = read(bytes, 1 << 20, &mut state)?;
    Ok((meta, check_state(&state[..])?))
}

#[test]
fn an_archive_says_what_is_in_it() {
    let (bytes, meta) = archive();
    let (read, tables) = read_all(&bytes).unwrap();
    assert_eq!(read, meta);
    let names: Vec<_> = tables
        .iter()
        .map(|table| (table.name, table.records))
        .collect();
    assert!(names.contains(&("KV", 1)), "{names:?}");
    assert!(tables.iter().all(|table| table.bytes > 0));
}

#[test]
fn what_does_not_belong_there_is_named() {
    let (bytes, _) = archive();
    assert!(matches!(
        read(&bytes[..], 10, io::sink()),
        Err(ArchiveError::TooLarge { name: STATE, .. })
    ));
    let repack = |change: &dyn Fn(&str, Vec<u8>) -> Option<File>| {
        let mut old = tar::Archive::new(GzDecoder::new(&bytes[..]));
        let mut new = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for entry in old.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            if let Some((name, content)) = change(&name, content) {
                append(&mut new, &name, content.len() as u64, &content[..]).unwrap();
            }
        }
        new.into_inner().unwrap().finish().unwrap()
    };
    let without = |gone: &'static str| {
        repack(&move |name, content| (name != gone).then(|| (name.to_owned(), content)))
    };
    for name in [META, STATE, SUMS] {
        let error = read_all(&without(name)).unwrap_err();
        assert!(matches!(error, ArchiveError::Missing(gone) if gone == name));
    }
    let renamed = repack(&|name, content| Some((format!("x{name}"), content)));
    assert!(matches!(
        read_all(&renamed),
        Err(ArchiveError::Unexpected(_))
    ));
    let changed = repack(&|name, mut content| {
        if name == STATE {
            content[100] ^= 1;
        }
        Some((name.to_owned(), content))
    });
    assert!(matches!(read_all(&changed), Err(ArchiveError::Hash(STATE))));
    let foreign = {
        let mut out = Vec::new();
        let meta = ArchiveMeta {
            size: 10,
            ..ArchiveMeta::default()
        };
        write(&mut out, &meta, &b"0123456789"[..]).unwrap();
        out
    };
    assert!(matches!(read_all(&foreign), Err(ArchiveError::Foreign)));
    let mut no_tar = GzEncoder::new(Vec::new(), Compression::fast());
    no_tar.write_all(b"something else").unwrap();
    for no_archive in [no_tar.finish().unwrap(), b"nor is this".to_vec()] {
        let error = read_all(&no_archive).unwrap_err().to_string();
        assert!(error.contains("it is no archive (tar in gzip)"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Nothing panics, and nothing damaged passes.
    #[test]
    fn a_cut_or_changed_archive_is_refused(at in any::<prop::sample::Index>(), flip in 0_u8..8) {
        let (bytes, meta) = archive();
        let at = at.index(bytes.len());
        prop_assert!(read_all(&bytes[..at]).is_err());
        let mut changed = bytes.clone();
        changed[at] ^= 1 << flip;
        // Gzip has bits that are not of the content, and more than one way to say the same.
        if let Ok((read, _)) = read_all(&changed) {
            let inside = |bytes: &[u8]| {
                let mut content = Vec::new();
                GzDecoder::new(bytes).read_to_end(&mut content).map(|_| content).ok()
            };
            prop_assert_eq!(inside(&changed), inside(&bytes));
            prop_assert_eq!(read, meta);
        }
    }
}
