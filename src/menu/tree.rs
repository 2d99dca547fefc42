//! The numbers of DTSetup, as far as their work exists.

/// One place in the menu.
pub(super) struct Node {
    /// DTSetup's number; empty for the top.
    pub(super) number: &'static str,
    pub(super) title: &'static str,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    Menu(&'static [Node]),
    Leaf(Leaf),
}

/// What a number does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Leaf {
    AddEntry,
    RemoveEntry,
    MountAll,
    UnmountAll,
}

impl Leaf {
    /// How many questions it asks.
    pub(super) fn answers(self) -> usize {
        match self {
            Leaf::AddEntry => 2,
            Leaf::RemoveEntry => 1,
            Leaf::MountAll | Leaf::UnmountAll => 0,
        }
    }
}

impl Node {
    /// What is offered below it.
    pub(super) fn children(&self) -> &'static [Node] {
        match self.kind {
            Kind::Menu(children) => children,
            Kind::Leaf(_) => &[],
        }
    }
}

const fn leaf(number: &'static str, title: &'static str, leaf: Leaf) -> Node {
    Node { number, title, kind: Kind::Leaf(leaf) }
}

const fn menu(number: &'static str, title: &'static str, children: &'static [Node]) -> Node {
    Node { number, title, kind: Kind::Menu(children) }
}

static FILE_SYSTEM: [Node; 4] = [
    leaf("1.3.1.1", "Add an entry to dtfs_mounts", Leaf::AddEntry),
    leaf("1.3.1.2", "Remove an entry from dtfs_mounts", Leaf::RemoveEntry),
    leaf("1.3.1.3", "Mount all entries now", Leaf::MountAll),
    leaf("1.3.1.4", "Unmount DTFS from all entries", Leaf::UnmountAll),
];
static REPLICATION: [Node; 1] = [menu("1.3.1", "File System Replication setup file", &FILE_SYSTEM)];
static SETUP: [Node; 1] = [menu("1.3", "Configure File System or Block Device Replication", &REPLICATION)];
static MAIN: [Node; 1] = [menu("1", "Setup tasks", &SETUP)];

/// The top of the menu.
pub(super) static TOP: Node = menu("", "DTFS setup", &MAIN);

/// The place with exactly this number.
pub(super) fn find(number: &str) -> Option<&'static Node> {
    let mut here = &TOP;
    while here.number != number {
        here = here.children().iter().find(|child| is_on_the_way(child.number, number))?;
    }
    Some(here)
}

fn is_on_the_way(place: &str, number: &str) -> bool {
    number.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// What `choice` means at `here`: the last part of a child's number, or any whole number.
pub(super) fn choose(here: &Node, choice: &str) -> Option<&'static Node> {
    let last = |node: &Node| node.number.rsplit('.').next() == Some(choice);
    here.children().iter().find(|child| last(child)).or_else(|| find(choice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_from_everywhere() {
        assert_eq!(find("1.3.1.4").unwrap().title, "Unmount DTFS from all entries");
        assert_eq!(find("1.3").unwrap().children().len(), 1);
        assert!(find("1.3.1.5").is_none() && find("13").is_none() && find("").is_some());
        let setup = find("1").unwrap();
        assert_eq!(choose(setup, "3").unwrap().number, "1.3");
        assert_eq!(choose(setup, "1.3.1").unwrap().number, "1.3.1");
        assert!(choose(setup, "2").is_none());
    }
}
