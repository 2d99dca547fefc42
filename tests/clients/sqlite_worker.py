"""Moves money between accounts of a SQLite database, for ever, and prints the number of each move that is committed.

    sqlite_worker.py DATABASE WORKER        works until it is killed
    sqlite_worker.py DATABASE create MODE   makes the database, in this journal mode
    sqlite_worker.py DATABASE check         prints whether it is sound, the sum of all money, and each worker's last move
"""

import random
import sqlite3
import sys

ACCOUNTS = 500

path, what = sys.argv[1], sys.argv[2]
base = sqlite3.connect(path, timeout=120, isolation_level=None)
base.execute("PRAGMA synchronous=FULL")


def create(mode):
    print(base.execute(f"PRAGMA journal_mode={mode}").fetchone()[0])
    base.execute("CREATE TABLE account(id INTEGER PRIMARY KEY, money INTEGER, filler BLOB)")
    base.execute("CREATE TABLE move(worker INTEGER, number INTEGER, PRIMARY KEY(worker, number))")
    base.execute("CREATE TABLE note(text TEXT)")
    base.execute("CREATE INDEX by_text ON note(text)")
    base.execute("BEGIN")
    base.executemany("INSERT INTO account VALUES (?, 1000, zeroblob(500))", ((n,) for n in range(ACCOUNTS)))
    base.execute("COMMIT")


def work(worker):
    choose = random.Random(worker)
    number = base.execute("SELECT coalesce(max(number), 0) FROM move WHERE worker = ?", (worker,)).fetchone()[0]
    while True:
        number += 1
        base.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            amount, one, other = choose.randrange(1, 50), choose.randrange(ACCOUNTS), choose.randrange(ACCOUNTS)
            base.execute("UPDATE account SET money = money - ?, filler = randomblob(500) WHERE id = ?", (amount, one))
            base.execute("UPDATE account SET money = money + ? WHERE id = ?", (amount, other))
        base.execute("INSERT INTO note VALUES (hex(randomblob(?)))", (choose.randrange(1, 900),))
        base.execute("INSERT INTO move VALUES (?, ?)", (worker, number))
        base.execute("COMMIT")
        print(number, flush=True)


def check():
    print(base.execute("PRAGMA integrity_check").fetchone()[0])
    print(base.execute("SELECT sum(money) FROM account").fetchone()[0] - ACCOUNTS * 1000)
    for worker, last, count in base.execute("SELECT worker, max(number), count(*) FROM move GROUP BY worker ORDER BY worker"):
        print(worker, last, count)


if what == "create":
    create(sys.argv[3])
elif what == "check":
    check()
else:
    work(int(what))
