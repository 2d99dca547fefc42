//! Acting as another user for a while.
#![allow(unsafe_code, reason = "credentials of one thread only cannot be had without")]

/// Who acts.
#[derive(Clone, Copy)]
pub(crate) struct User<'a> {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: &'a [u32],
    pub(crate) umask: u32,
}

/// An ordinary user without further groups.
pub(crate) const SOMEONE: User<'static> = User { uid: 1234, gid: 1234, groups: &[], umask: 0o022 };

impl User<'_> {
    /// Does `act` with the rights of this user, and no others.
    pub(crate) fn does<T: Send>(self, act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(|| self.become_and(act)).join().expect("the user's thread"))
    }

    fn become_and<T>(self, act: impl FnOnce() -> T) -> T {
        // The system calls themselves change the calling thread only; libc's wrappers would change them all.
        // SAFETY: plain integers and a list that outlives the call; the thread ends with `act`.
        unsafe {
            assert_eq!(libc::unshare(libc::CLONE_FS), 0);
            libc::umask(self.umask);
            assert_eq!(libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr()), 0);
            assert_eq!(libc::syscall(libc::SYS_setresgid, self.gid, self.gid, self.gid), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, self.uid, self.uid, self.uid), 0);
        }
        act()
    }
}
