//! Programs that people run.

use e2e::{Container, DEBIAN, eventually};

crate::for_each_snapshotter!(python_computes, redis_keeps_and_returns);

fn python_computes(snapshotter: &str) {
    let program = "import hashlib, json, sqlite3, threading; \
                   db = sqlite3.connect('/tmp/x.db'); db.execute('create table t (n)'); \
                   db.executemany('insert into t values (?)', [(n,) for n in range(1000)]); db.commit(); \
                   print(json.dumps({'sum': db.execute('select sum(n) from t').fetchone()[0]}))";
    let finished = Container::new(DEBIAN, snapshotter).command(&["/usr/bin/python3", "-c", program]).run().success();
    assert_eq!(finished.stdout(), "{\"sum\": 499500}\n");
}

fn redis_keeps_and_returns(snapshotter: &str) {
    let command = ["/usr/bin/redis-server", "--dir", "/tmp", "--appendonly", "yes"];
    let redis = Container::new(DEBIAN, snapshotter).command(&command).start();
    eventually("redis answers", || redis.exec(&["/usr/bin/redis-cli", "ping"]).stdout() == "PONG\n");
    redis.exec(&["/usr/bin/redis-cli", "set", "tenant", "bulkhead"]).success();
    redis.exec(&["/usr/bin/redis-cli", "bgrewriteaof"]).success();
    assert_eq!(redis.exec(&["/usr/bin/redis-cli", "get", "tenant"]).success().stdout(), "bulkhead\n");
}
