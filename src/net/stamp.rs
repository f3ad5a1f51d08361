//! How files look, so that a change is noticed without reading them: through symbolic links, which is how certificates and
//! keys are mostly swapped.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

/// How some files look: of each its device, inode, length and both times, or that it is not there. Another look that is the
/// same is no proof that they are the same, but nobody swaps files within the clock's grain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp(Vec<Option<[u64; 7]>>);

impl Stamp {
    /// How these look now. To be taken before they are read: what changes from then on is noticed by the next look.
    pub fn of<'a>(files: impl IntoIterator<Item = &'a Path>) -> Self {
        let look = |file: &Path| {
            // Of what a symbolic link leads to.
            let there = fs::metadata(file).ok()?;
            let signed = |n: i64| n.cast_unsigned();
            Some([
                there.dev(),
                there.ino(),
                there.len(),
                signed(there.mtime()),
                signed(there.mtime_nsec()),
                signed(there.ctime()),
                signed(there.ctime_nsec()),
            ])
        };
        Self(files.into_iter().map(look).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_that_change_come_or_go_look_another_way_and_others_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two, link] = ["one", "two", "link"].map(|name| folder.path().join(name));
        let look = || Stamp::of([&*one, &*two, &*link]);
        let mut before = look();
        assert_eq!(look(), before);
        let mut changed = |what: &str, change: &dyn Fn()| {
            change();
            let now = look();
            assert_ne!(now, before, "{what}");
            assert_eq!(look(), now, "{what}");
            before = now;
        };
        changed("there", &|| fs::write(&one, "1").unwrap());
        changed("longer", &|| fs::write(&one, "12").unwrap());
        changed("another", &|| fs::write(&two, "12").unwrap());
        changed("a link", &|| symlink(&one, &link).unwrap());
        changed("a link to another", &|| {
            fs::remove_file(&link).unwrap();
            symlink(&two, &link).unwrap();
        });
        changed("gone", &|| fs::remove_file(&one).unwrap());
    }
}
