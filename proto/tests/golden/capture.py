#!/usr/bin/env python3
"""Records what real clients and a real PostgreSQL say to each other: the *.bin files beside this script.

    capture.py OUT.bin TARGET_PORT -- command with {port} in it

The client's last connection is recorded (pgbench makes one only to look around). A record is: 'F' (from the client) or
'B' (from the target), the length as four bytes big-endian, the bytes as they were read. Records are in the order in
which the relay passed them on.
"""
import select, socket, struct, subprocess, sys

out, target_port, separator, *command = sys.argv[1:]
assert separator == "--"
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
child = subprocess.Popen([part.replace("{port}", str(port)) for part in command])
listener.settimeout(0.2)


def relay(client):
    """One connection; its record replaces the one before it."""
    target = socket.create_connection(("127.0.0.1", int(target_port)))
    sides = {client: (b"F", target), target: (b"B", client)}
    with open(out, "wb") as record:
        while sides:
            for side in select.select(list(sides), [], [])[0]:
                kind, other = sides[side]
                data = side.recv(65536)
                if data:
                    record.write(kind + struct.pack(">I", len(data)) + data)
                    other.sendall(data)
                else:
                    del sides[side]
                    try:
                        other.shutdown(socket.SHUT_WR)
                    except OSError:
                        pass


while child.poll() is None:
    try:
        relay(listener.accept()[0])
    except TimeoutError:
        pass
