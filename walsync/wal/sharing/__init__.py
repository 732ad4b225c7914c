"""One log, many processes: how those that have a directory open keep out of each other's way.

`membership` opens and joins. `tail` lets one at a time write at the log's end, `keeping` and `kept_tail` without asking
where nobody else wants to. `leads` and `commits` are group commit over processes, through `posts` and after
`gathering`; who applies is woken by `urging`; `slot_files` and `releases` share the segments' files, and `locks` are
what all of them wait for. What the processes tell each other lies in the control block (`walsync.wal.control_block`);
what must survive them lies in the segments alone.

Invariants: nothing is durable, written or released because the control block says so, but because the files hold it;
whoever dies, wherever, leaves locks that the kernel takes back, a tail that the next writer takes up where it was
published, and slot files that the next one who looks finds free or unfinished. Order of locks: the appender's thread
lock, append, slot files; the releases', slot files. The sync lock and the lease are taken with none of them held.
"""
