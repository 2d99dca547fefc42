//! The numbers of DTSetup.

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
    /// A number of DTSetup whose work is done otherwise, or not at all: one sentence on what to do instead.
    Note(&'static str),
}

/// What a number does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Leaf {
    AddEntry,
    RemoveEntry,
    MountAll,
    UnmountAll,
    MountOne,
    UnmountOne,
    DefineTarget,
    ForgetTarget,
    Mirror,
    Reload,
    Status,
    Events,
    Check,
    Doctor,
}

impl Leaf {
    /// How many questions it asks.
    pub(super) fn answers(self) -> usize {
        match self {
            Leaf::Mirror => 3,
            Leaf::AddEntry | Leaf::DefineTarget | Leaf::ForgetTarget => 2,
            Leaf::RemoveEntry | Leaf::MountOne | Leaf::UnmountOne => 1,
            Leaf::MountAll | Leaf::UnmountAll => 0,
            Leaf::Reload | Leaf::Status | Leaf::Events | Leaf::Check | Leaf::Doctor => 0,
        }
    }
}

impl Node {
    /// What is offered below it.
    pub(super) fn children(&self) -> &'static [Node] {
        match self.kind {
            Kind::Menu(children) => children,
            Kind::Leaf(_) | Kind::Note(_) => &[],
        }
    }
}

const fn leaf(number: &'static str, title: &'static str, leaf: Leaf) -> Node {
    Node { number, title, kind: Kind::Leaf(leaf) }
}

const fn menu(number: &'static str, title: &'static str, children: &'static [Node]) -> Node {
    Node { number, title, kind: Kind::Menu(children) }
}

const fn note(number: &'static str, title: &'static str, text: &'static str) -> Node {
    Node { number, title, kind: Kind::Note(text) }
}

static FILE_SYSTEM: [Node; 4] = [
    leaf("1.3.1.1", "Add an entry to dtfs_mounts", Leaf::AddEntry),
    leaf("1.3.1.2", "Remove an entry from dtfs_mounts", Leaf::RemoveEntry),
    leaf("1.3.1.3", "Mount all entries now", Leaf::MountAll),
    leaf("1.3.1.4", "Unmount DTFS from all entries", Leaf::UnmountAll),
];
const NO_BLOCK_DEVICES: &str = "Block devices are not replicated as such. Image files on a volume are captured like every \
other file: keep the image of a loop device or a virtual machine there, and add its directory with 1.3.1.1.";
static MANUAL: [Node; 2] =
    [leaf("1.3.3.1", "Mount one entry", Leaf::MountOne), leaf("1.3.3.2", "Unmount one entry", Leaf::UnmountOne)];
static GROUPS: [Node; 4] = [
    note(
        "1.1.1",
        "Add a user to the administrators",
        "Only root changes anything. Give a user the commands with sudo(8), for example in /etc/sudoers.d/dtfs: USER ALL=(root) /usr/bin/dtfs",
    ),
    note("1.1.2", "Remove a user from the administrators", "Take the user's line out of /etc/sudoers.d/dtfs."),
    note(
        "1.1.3",
        "Add a user to those who may look",
        "Members of the group dtfs may ask for status, mounts list and wait. Add one with: gpasswd -a USER dtfs (before: \
         groupadd --system dtfs, and a restart of the daemon)",
    ),
    note("1.1.4", "Remove a user from those who may look", "Take one out with: gpasswd -d USER dtfs"),
];
static CODES: [Node; 3] = [
    note(
        "1.2.1",
        "Show the key of this host",
        "Over ssh it is root's key: ssh-keygen -y -f /root/.ssh/id_ed25519. Over tls:// it is shown by: dtfs peer show",
    ),
    note(
        "1.2.2",
        "Pair with a target",
        "Over ssh put that key into authorized_keys on the target, with command=\"dtfs serve --stdio DIR\",restrict before it. \
         Over tls://: dtfs help peer add",
    ),
    note(
        "1.2.3",
        "Forget a peer",
        "Over ssh take its key out of authorized_keys on the target. Over tls://: dtfs help peer forget",
    ),
];
static BLOCK_DEVICES: [Node; 4] = [
    note("1.3.2.1", "Add a block device", NO_BLOCK_DEVICES),
    note("1.3.2.2", "Remove a block device", NO_BLOCK_DEVICES),
    note("1.3.2.3", "Attach all block devices", NO_BLOCK_DEVICES),
    note("1.3.2.4", "Detach all block devices", NO_BLOCK_DEVICES),
];
static REPLICATION: [Node; 3] = [
    menu("1.3.1", "File System Replication setup file", &FILE_SYSTEM),
    menu("1.3.2", "Block Device Replication setup file", &BLOCK_DEVICES),
    menu("1.3.3", "Manual replication configuration", &MANUAL),
];
static TARGETS: [Node; 4] = [
    leaf("1.6.1", "Define a target", Leaf::DefineTarget),
    leaf("1.6.2", "Forget a target", Leaf::ForgetTarget),
    leaf("1.6.3", "Read the files again", Leaf::Reload),
    leaf("1.6.4", "Mirror a target again", Leaf::Mirror),
];
static SETUP: [Node; 7] = [
    menu("1.1", "Modify security groups", &GROUPS),
    menu("1.2", "Activation codes: none is needed; peers and keys", &CODES),
    menu("1.3", "Configure File System or Block Device Replication", &REPLICATION),
    note(
        "1.4",
        "Configure server settings",
        "The size of a journal and what happens when it is full stand in mounts.d/VOLUME.toml; edit it, then choose 1.6.3.",
    ),
    note(
        "1.5",
        "Configure driver performance",
        "Nothing is throttled: a slow target never holds up a program. Options of a mount are given with 1.3.1.1, or \
         with: dtfs mounts add PATH -o OPTS",
    ),
    menu("1.6", "Targets", &TARGETS),
    note(
        "1.7",
        "Snapshots and exports",
        "Snapshots are not there yet: take them on the target, of its filesystem, after: dtfs wait VOL TARGET",
    ),
];
static SERVICE: [Node; 3] = [
    leaf("2.1", "Show the mounts", Leaf::Status),
    note(
        "2.2",
        "Start",
        "Start the daemon with: systemctl start dtfs; at every start of the system with: systemctl enable dtfs; without \
         systemd with: dtfs daemon",
    ),
    note(
        "2.3",
        "Stop",
        "Stop it with: systemctl stop dtfs; or send SIGTERM to dtfs daemon. What targets lack is sent before, for a while.",
    ),
];
static LOOK: [Node; 2] =
    [leaf("4.1", "Status of volumes and targets", Leaf::Status), leaf("4.2", "What happened", Leaf::Events)];
static HELP: [Node; 3] = [
    note("6.1", "Documentation", "man dtfs, man dtfs_mounts; every command has help: dtfs help COMMAND"),
    leaf("6.2", "Check the configuration", Leaf::Check),
    leaf("6.3", "Look for problems of this host", Leaf::Doctor),
];
static MAIN: [Node; 6] = [
    menu("1", "Setup tasks", &SETUP),
    menu("2", "Start and stop", &SERVICE),
    note("3", "Text client", "Leave the menu with q and type: dtfs COMMAND. dtfs help lists them all."),
    menu("4", "Status and statistics", &LOOK),
    note(
        "5",
        "Failover, failback, restore",
        "Failing over is not in this menu. On the host of the copy: dtfs promote; on the old source, when it is back: dtfs demote. \
         man dtfs, FAILOVER AND FAILBACK, has both step by step.",
    ),
    menu("6", "Documentation and troubleshooting", &HELP),
];

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
        assert_eq!(find("1.3").unwrap().children().len(), 3);
        assert!(find("1.3.1.5").is_none() && find("13").is_none() && find("").is_some());
        let setup = find("1").unwrap();
        assert_eq!(choose(setup, "3").unwrap().number, "1.3");
        assert_eq!(choose(setup, "1.3.1").unwrap().number, "1.3.1");
        assert!(choose(setup, "8").is_none());
    }
}
