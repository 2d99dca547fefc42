//! What a new user does, with the README and the manual only: every line that is typed here stands in one of them. Two hosts
//! on two networks are paired, a volume is replicated, the target is lost and comes back, then the source, and it gets its
//! role back. And the menu, from start to end.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::host::{Host, is_dtfs};
use support::link::{FAR, Link, NEAR};
use support::process::wait_until;
use support::scratch::{FileSystem, Scratch, utf8};
use support::sshd::{Key, Sshd};
use support::trees;
use support::workload::{Workload, worker_was_asked};

const LIMIT: Duration = Duration::from_secs(120);
/// Does not shrink: whoever mirrors again sends it again.
const BALLAST_BYTES: usize = 16 << 20;
const LISTEN: &str = "listen = \"0.0.0.0:6320\"";

#[test]
fn workload_worker() {
    worker_was_asked();
}

/// The lines that are documented, without what explains them.
fn documented() -> Vec<String> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["README.md", "src/cli/manual/dtfs.8.before", "src/cli/manual/dtfs.8.after"];
    let text: String = files.iter().map(|file| fs::read_to_string(top.join(file)).unwrap()).collect();
    let lines = text.lines().flat_map(|line| line.split("over ssh: "));
    lines.map(|line| line.split(" #").next().unwrap_or_default().trim().replace("\\-", "-")).collect()
}

/// Two hosts as the documents call them; the fields are dropped in this order.
struct Pair {
    alpha: Host,
    beta: Host,
    data: PathBuf,
    copy: PathBuf,
    /// Who lets whom in, for a walk over ssh.
    doors: Vec<Sshd>,
    link: Link,
    lines: Vec<String>,
    _scratch: Scratch,
}

#[derive(Clone, Copy)]
enum Who {
    Alpha,
    Beta,
}
use Who::{Alpha, Beta};

impl Pair {
    fn new() -> Pair {
        let scratch = Scratch::with_size(FileSystem::Ext4, 1024);
        let (data, copy) = (scratch.dir("data"), scratch.path().join("copy"));
        trees::fill(&data.join("many"), 200);
        let mut ballast = vec![0; BALLAST_BYTES];
        blake3::Hasher::new().finalize_xof().fill(&mut ballast);
        fs::write(data.join("ballast"), &ballast).unwrap();
        let link = Link::new();
        let (mut alpha, mut beta) = (Host::new(), Host::new());
        alpha.put_on_network(link.near.keeper());
        beta.put_on_network(link.far.keeper());
        Pair { alpha, beta, data, copy, doors: Vec::new(), link, lines: documented(), _scratch: scratch }
    }

    fn host(&self, who: Who) -> &Host {
        match who {
            Alpha => &self.alpha,
            Beta => &self.beta,
        }
    }

    /// What the documents write, as it is on these hosts.
    fn translated(&self, line: &str) -> String {
        let line = line.replace("tls://alpha", &format!("tls://{NEAR}")).replace("tls://beta", &format!("tls://{FAR}"));
        let line =
            line.replace("root@alpha", &format!("root@{NEAR}:2222")).replace("root@beta", &format!("root@{FAR}:2222"));
        let line = line.replace(" alpha", &format!(" {NEAR}")).replace(" beta", &format!(" {FAR}"));
        line.replace("/srv/data", utf8(&self.data)).replace("/srv/copy", utf8(&self.copy))
    }

    /// Types a documented line.
    fn tries(&self, who: Who, line: &str) -> support::host::Answer {
        assert!(self.lines.iter().any(|known| known == line), "{line}: in no document");
        let line = self.translated(line);
        println!("{}# {line}", if matches!(who, Alpha) { "alpha" } else { "beta" });
        let words: Vec<&str> = line.split(' ').skip(1).collect();
        let answer = self.host(who).run(&words);
        print!("{}{}", answer.stdout, answer.stderr);
        answer
    }

    fn types(&self, who: Who, line: &str) -> String {
        let answer = self.tries(who, line);
        assert_eq!(answer.code, 0, "{line}: {answer:?}");
        answer.stdout
    }

    /// `peer add` with the fingerprint that the other host shows.
    fn knows(&self, who: Who, line: &str) {
        assert!(self.lines.iter().any(|known| known == line), "{line}: in no document");
        let other = if matches!(who, Alpha) { Beta } else { Alpha };
        let fingerprint = self.types(other, "dtfs peer show");
        let line = self.translated(line).replace("FINGERPRINT", fingerprint.trim());
        self.host(who).must(&line.split(' ').skip(1).collect::<Vec<_>>());
    }

    fn listens(&self, who: Who) {
        assert!(self.lines.iter().any(|line| line.contains(LISTEN)), "{LISTEN}: in no document");
        let file = self.host(who).root().join("etc/dtfs/dtfs.toml");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, format!("{LISTEN}\n")).unwrap();
    }

    fn status_says(&self, who: Who, what: &str) {
        wait_until(&format!("a status that says {what}"), LIMIT, || {
            self.host(who).must(&["status"]).contains(what).then_some(())
        });
        self.types(who, "dtfs status");
    }

    fn bytes_sent(&self, who: Who) -> u64 {
        self.host(who).bytes_sent("data")
    }

    /// Both daemons have ended, and the trees are equal.
    fn ends(mut self, context: &str) {
        self.alpha.stop();
        self.beta.stop();
        trees::assert_equal(&self.data, &self.copy, context);
    }
}

#[test]
fn two_hosts_over_tls() {
    let mut pair = Pair::new();
    pair.types(Alpha, "dtfs define volume data /srv/data");
    pair.alpha.adopt_volume(&pair.data);
    pair.alpha.start();
    pair.listens(Beta);
    pair.beta.start();
    pair.knows(Beta, "dtfs peer add alpha FINGERPRINT");
    pair.types(Beta, "dtfs define source data alpha /srv/copy");
    pair.knows(Alpha, "dtfs peer add beta FINGERPRINT");
    pair.types(Alpha, "dtfs define target data tls://beta/data");
    replicated_lost_and_back(&pair);
    let (shown, tid) = (pair.types(Beta, "dtfs status"), pair.alpha.tid("data"));
    assert!(shown.contains("WRITTEN BY") && shown.contains(NEAR), "{shown}");
    pair.types(Alpha, "dtfs wait data");
    pair.status_says(Beta, &dtfs::base::Tid(tid).to_string());

    lose_alpha(&mut pair, "dtfs promote data");
    pair.listens(Alpha);
    alpha_comes_back(&mut pair);
    pair.types(Alpha, "dtfs define source data beta /srv/data");
    pair.types(Beta, "dtfs define target data tls://alpha/data");
    follows_without_a_mirror(&pair, Beta);

    pair.types(Beta, "dtfs demote data");
    pair.types(Alpha, "dtfs promote data");
    pair.types(Beta, "dtfs define source data alpha /srv/copy");
    pair.types(Alpha, "dtfs define target data tls://beta/data");
    follows_without_a_mirror(&pair, Alpha);
    pair.ends("walked over tls");
}

#[test]
fn two_hosts_over_ssh() {
    let mut pair = Pair::new();
    for (network, address, server, client) in
        [(&pair.link.far, FAR, &pair.beta, &pair.alpha), (&pair.link.near, NEAR, &pair.alpha, &pair.beta)]
    {
        let door = Sshd::start(network, address, server.root(), &Key::Free);
        door.write_client_config(&client.root().join("etc/dtfs/ssh_config"));
        pair.doors.push(door);
    }
    pair.types(Alpha, "dtfs define volume data /srv/data");
    pair.alpha.adopt_volume(&pair.data);
    pair.alpha.start();
    pair.beta.start();
    pair.types(Alpha, "dtfs define target data ssh://root@beta/srv/copy");
    replicated_lost_and_back(&pair);

    lose_alpha(&mut pair, "dtfs promote /srv/copy --as data");
    alpha_comes_back(&mut pair);
    pair.types(Beta, "dtfs define target data ssh://root@alpha/srv/data");
    follows_without_a_mirror(&pair, Beta);

    pair.types(Beta, "dtfs demote data");
    pair.types(Alpha, "dtfs promote /srv/data --as data");
    pair.types(Alpha, "dtfs define target data ssh://root@beta/srv/copy");
    follows_without_a_mirror(&pair, Alpha);
    pair.ends("walked over ssh");
}

/// The target is there, is lost while work goes on, and comes back.
fn replicated_lost_and_back(pair: &Pair) {
    assert!(pair.types(Alpha, "dtfs mounts list").contains("data"));
    pair.types(Alpha, "dtfs wait data");
    let mirrored = pair.bytes_sent(Alpha);
    assert!(mirrored > BALLAST_BYTES as u64, "noise does not shrink");
    let load = Workload::start(&pair.data, 1, 2, 300);
    pair.link.cut();
    load.finish();
    pair.status_says(Alpha, "offline");
    pair.link.mend();
    pair.types(Alpha, "dtfs wait data");
    assert!(pair.bytes_sent(Alpha) - mirrored < BALLAST_BYTES as u64, "no second mirror");
    pair.types(Alpha, "dtfs verify data beta");
    pair.types(Alpha, "dtfs check");
    pair.types(Beta, "dtfs check");
}

/// Something that only alpha has; then it dies, and beta takes over.
fn lose_alpha(pair: &mut Pair, promote: &str) {
    pair.link.cut();
    // What a session has given to the connection still arrives when the link is mended, whoever is dead by then.
    pair.status_says(Alpha, "offline");
    fs::write(pair.data.join("only-alpha"), b"written when nobody heard it").unwrap();
    fs::write(pair.data.join("both"), b"by alpha").unwrap();
    pair.alpha.kill9();
    pair.link.mend();
    wait_until("the session with the source to end", LIMIT, || {
        let answer = pair.tries(Beta, promote);
        assert!([0, 5].contains(&answer.code), "{answer:?}");
        (answer.code == 0).then_some(())
    });
    pair.beta.adopt_volume(&pair.copy);
    assert!(is_dtfs(&pair.copy), "it is mounted by the daemon");
    assert!(!pair.copy.join("only-alpha").exists());
    fs::write(pair.copy.join("both"), b"by beta").unwrap();
    fs::write(pair.copy.join("by-beta"), b"while alpha was away").unwrap();
    Workload::start(&pair.copy, 2, 2, 300).finish();
}

/// It hears what happened, and becomes a copy.
fn alpha_comes_back(pair: &mut Pair) {
    pair.alpha.start();
    pair.status_says(Alpha, "was promoted");
    let refused = fs::write(pair.data.join("late"), b"x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    // What was changed while it was not mounted is looked for first.
    let told = wait_until("alpha to be a copy", LIMIT, || {
        let answer = pair.tries(Alpha, "dtfs demote data");
        assert!([0, 7].contains(&answer.code), "{answer:?}");
        (answer.code == 0).then_some(answer.stdout)
    });
    assert!(told.contains("only here") && told.contains("only-alpha"), "{told}");
    let dirs = fs::read_dir(pair.data.join(".dtfs")).unwrap().map(|entry| entry.unwrap().path());
    let kept = dirs.into_iter().find(|path| utf8(path).contains("/fork-")).expect("what only alpha had is kept");
    assert_eq!(fs::read(kept.join("only-alpha")).unwrap(), b"written when nobody heard it");
}

/// `who` is the master; the other has everything soon, and was not mirrored anew.
fn follows_without_a_mirror(pair: &Pair, who: Who) {
    let (own, other) = match who {
        Alpha => (&pair.data, &pair.copy),
        Beta => (&pair.copy, &pair.data),
    };
    fs::write(own.join("live"), utf8(own)).unwrap();
    pair.types(who, "dtfs wait data");
    assert_eq!(fs::read(other.join("live")).unwrap(), utf8(own).as_bytes());
    assert_eq!(fs::read(other.join("both")).unwrap(), b"by beta");
    assert!(pair.bytes_sent(who) < BALLAST_BYTES as u64, "no new mirror");
    pair.types(who, "dtfs check");
}

#[test]
fn the_menu_from_start_to_end() {
    let scratch = Scratch::new(FileSystem::Ext4);
    let (data, copy) = (scratch.dir("data"), scratch.path().join("copy"));
    trees::fill(&data.join("many"), 50);
    let mut host = Host::new();
    host.start();
    host.adopt_volume(&data);
    let (dir, url) = (utf8(&data), format!("local:{}", utf8(&copy)));
    let shown = host
        .types(&["setup"], &format!("1\n3\n1\n1\n{dir}\nn\n1.3.1.3\n1.6.1\ndata\n{url}\n4.1\n6.2\n1.1\n1.2\n5\nq\n"));
    println!("{shown}");
    for what in ["Added", "Defined the target copy of data", "mounts add", "mounts mount --all", "promote"] {
        assert!(shown.contains(what), "{what} is missing:\n{shown}");
    }
    assert!(is_dtfs(&data));
    fs::write(data.join("after"), b"the mount").unwrap();
    host.must(&["wait", "data", "--timeout", "120"]);
    let shown = host.types(&["setup"], "4.1\n4.2\n6.3\n1.6.3\n1.6.2\ndata\ncopy\n1.3.1.4\n1.3.1.2\n1\n2.1\nq\n");
    println!("{shown}");
    for what in ["replicating", "Forgot the target copy of data", "Removed", "There are no volumes"] {
        assert!(shown.contains(what), "{what} is missing:\n{shown}");
    }
    assert!(!is_dtfs(&data));
    host.stop();
    trees::assert_equal(&data, &copy, "by the menu alone");
}
