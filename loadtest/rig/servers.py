"""The servers that are measured, each in a cgroup and a directory of its own, and a run of the generator against one of them.

Needs root (cgroups, Dovecot's users) and `cargo build --release -p hikyaku -p loadtest`.
"""
import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LOADTEST = f"{TOP}/target/release/loadtest"
DOMAIN = "example.jp"
STARTED = []


def run(*argv):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def write(path, text, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, mode)


def read(path):
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def free_ports(count):
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def wait_port(port, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"nothing listens on port {port} after {seconds} s")


class Group:
    """A cgroup (version 1 or 2) for all processes of one server."""

    def __init__(self, name):
        self.name = name
        old = "/sys/fs/cgroup/cpuacct"
        self.old = os.path.isdir(old)
        self.path = f"{old if self.old else '/sys/fs/cgroup'}/compare-{os.getpid()}-{name}"
        os.makedirs(self.path)

    def enter(self):
        write(f"{self.path}/cgroup.procs", str(os.getpid()))

    def cpu_seconds(self):
        if self.old:
            return int(read(f"{self.path}/cpuacct.usage")) / 1e9
        fields = dict(line.split() for line in read(f"{self.path}/cpu.stat").splitlines())
        return int(fields["usage_usec"]) / 1e6

    def wait_idle(self, seconds=60):
        """Until the server has used less than 5 % of a core for a second: what it had put off is done then."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            before = self.cpu_seconds()
            time.sleep(1)
            if self.cpu_seconds() - before < 0.05:
                return
        sys.exit(f"{self.name} is not idle after {seconds} s")

    def pids(self):
        return [int(pid) for pid in read(f"{self.path}/cgroup.procs").split()]

    def pss_mb(self):
        """Resident memory, pages that processes share counted once."""
        total = 0
        for pid in self.pids():
            for line in read(f"/proc/{pid}/smaps_rollup").splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total / 1024

    def start(self, argv, log, **more):
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=open(log, "ab"), stderr=subprocess.STDOUT,
                                   start_new_session=True, preexec_fn=self.enter, **more)
        STARTED.append((self, process))
        return process

    def end(self):
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for _ in range(100):
                pids = self.pids()
                if not pids:
                    break
                for pid in pids:
                    try:
                        os.kill(pid, sign)
                    except ProcessLookupError:
                        pass
                time.sleep(0.1)
        os.rmdir(self.path)


class Hikyaku:
    name = "Hikyaku"

    def __init__(self, directory, options):
        self.data = f"{directory}/hikyaku"
        self.group = Group("hikyaku")
        self.smtp, self.smtps, self.pop3, self.pop3s, self.metrics = free_ports(5)
        tls, smtps, pop3s = "", "", ""
        if options.tls:
            tls = f'[tls]\ncertificate = "{directory}/certificate.pem"\nkey = "{directory}/key.pem"'
            smtps, pop3s = (f'listen_tls = ["127.0.0.1:{port}"]' for port in (self.smtps, self.pop3s))
        write(f"{self.data}/hikyaku.toml", f"""
[node]
hostname = "localhost"
data_dir = "data"
[directory]
ldif = "{directory}/directory.ldif"
postmaster = "{options.first}"
[mbox.mbox1]
shards = [0, 1]
[mbox.mbox2]
shards = [2, 3]
[smtp]
listen = ["127.0.0.1:{self.smtp}"]
{smtps}
[pop3]
listen = ["127.0.0.1:{self.pop3}"]
{pop3s}
cleartext_login = true
{tls}
[telemetry]
metrics_listen = "127.0.0.1:{self.metrics}"
""")
        environment = dict(os.environ, HIKYAKU_LOG=options.log)
        self.group.start([f"{TOP}/target/release/hikyaku", "all", "--config", f"{self.data}/hikyaku.toml"],
                         f"{self.data}/log", env=environment)
        wait_port(self.smtp)
        wait_port(self.pop3)

    def metric(self, name):
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=10).read().decode()
        for line in text.splitlines():
            if line.startswith(name + " "):
                return int(line.split()[-1])
        sys.exit(f"no {name} in /metrics")

    def delivered(self):
        return self.metric('hikyaku_recipients_settled_total{outcome="delivered"}')


class PostfixDovecot:
    """Debian's Postfix, Dovecot and slapd, tuned: no input delay, kept connections to LMTP, authentication cache."""

    name = "Postfix + Dovecot"

    def __init__(self, directory, options):
        self.directory = directory
        self.group = Group("postfix-dovecot")
        self.smtp, self.smtps, self.pop3, self.pop3s, self.lmtp, self.ldap = free_ports(6)
        self.tls = options.tls
        self.seen, self.count = 0, 0
        self.slapd(f"{directory}/slapd")
        self.dovecot(f"{directory}/dovecot")
        self.postfix(f"{directory}/postfix")

    def slapd(self, at):
        os.makedirs(f"{at}/db")
        # a parent for the users; mailHost names an address that Postfix can hand mail to
        ldif = read(f"{self.directory}/directory.ldif")
        people = f"dn: ou=people,o={DOMAIN}\nobjectClass: organizationalUnit\nou: people\n"
        ldif = ldif.removeprefix("version: 1\n").lstrip("\n")
        head, first, rest = ldif.partition("\ndn: uid=")
        head = head.replace("mailHost: mbox1\n", "")  # the schema allows it for recipients only
        ldif = head + "\n" + people + first + rest
        for number, mbox in enumerate(("mbox1", "mbox2")):
            ldif = ldif.replace(f"mailHost: {mbox}\n", f"mailHost: 127.0.0.{11 + number}\n")
        write(f"{at}/all.ldif", ldif)
        write(f"{at}/slapd.conf", "".join(f"include /etc/ldap/schema/{name}.schema\n"
                                          for name in ("core", "cosine", "inetorgperson", "misc")) + f"""
modulepath /usr/lib/ldap
moduleload back_mdb.la
pidfile {at}/slapd.pid
threads 8
loglevel 0
sizelimit unlimited
database mdb
suffix "o={DOMAIN}"
directory {at}/db
maxsize 1073741824
index objectClass,uid,mailLocalAddress,mailHost eq
access to * by * read
""")
        run("slapadd", "-q", "-f", f"{at}/slapd.conf", "-l", f"{at}/all.ldif")
        self.group.start(["slapd", "-f", f"{at}/slapd.conf", "-h", f"ldap://127.0.0.1:{self.ldap}", "-d", "0"], f"{at}/log")
        wait_port(self.ldap)

    def dovecot(self, at):
        os.makedirs(f"{at}/run")
        os.makedirs(f"{at}/mail")
        shutil.chown(f"{at}/mail", "mail", "mail")
        write(f"{at}/ldap.conf", f"""
hosts = 127.0.0.1:{self.ldap}
base = o={DOMAIN}
ldap_version = 3
auth_bind = no
pass_attrs = mailLocalAddress=user,userPassword=password
pass_filter = (mailLocalAddress=%u)
user_attrs = =home={at}/mail/%2.256Nu/%n
user_filter = (mailLocalAddress=%u)
default_pass_scheme = SSHA256
""", 0o600)
        tls = f"ssl = yes\nssl_cert = <{self.directory}/certificate.pem\nssl_key = <{self.directory}/key.pem"
        pop3s = f"    port = {self.pop3s}\n    ssl = yes"
        lmtp = "".join(f"  inet_listener lmtp{number} {{\n    address = 127.0.0.{number}\n    port = {self.lmtp}\n  }}\n"
                       for number in (1, 11, 12))
        write(f"{at}/dovecot.conf", f"""
protocols = pop3 lmtp
base_dir = {at}/run
state_dir = {at}/state
log_path = {at}/log
listen = 127.0.0.1
{tls if self.tls else "ssl = no"}
disable_plaintext_auth = no
auth_mechanisms = plain
auth_cache_size = 64M
mail_location = mdbox:~/mdbox
mail_uid = mail
mail_gid = mail
first_valid_uid = 1
first_valid_gid = 1
default_vsz_limit = 1G
mail_fsync = optimized
mdbox_rotate_size = 10M
passdb {{
  driver = ldap
  args = {at}/ldap.conf
}}
userdb {{
  driver = ldap
  args = {at}/ldap.conf
}}
service pop3-login {{
  service_count = 0
  process_min_avail = 2
  inet_listener pop3 {{
    port = {self.pop3}
  }}
  inet_listener pop3s {{
{pop3s if self.tls else "    port = 0"}
  }}
}}
service pop3 {{
  service_count = 200
}}
service lmtp {{
{lmtp}}}
namespace inbox {{
  inbox = yes
}}
""")
        self.group.start(["dovecot", "-F", "-c", f"{at}/dovecot.conf"], f"{at}/out")
        wait_port(self.lmtp)
        wait_port(self.pop3)

    def postfix(self, at):
        for name in ("conf", "spool", "data"):
            os.makedirs(f"{at}/{name}")
        shutil.chown(f"{at}/data", "postfix", "postfix")
        search = (f"server_host = ldap://127.0.0.1:{self.ldap}\nversion = 3\nbind = no\nsearch_base = o={DOMAIN}\n"
                  "scope = sub\nquery_filter = (mailLocalAddress=%s)\n")
        write(f"{at}/conf/users.cf", search + "result_attribute = uid\n")
        write(f"{at}/conf/route.cf",
              search + f"result_attribute = mailHost\nresult_format = lmtp:inet:[%s]:{self.lmtp}\n")
        self.log = f"{self.directory}/postfix.log"
        tls = (f"smtpd_tls_security_level = may\nsmtpd_tls_chain_files = {self.directory}/key.pem, {self.directory}/certificate.pem"
               if self.tls else "smtpd_tls_security_level = none")
        write(f"{at}/conf/main.cf", f"""
compatibility_level = 3.6
queue_directory = {at}/spool
data_directory = {at}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
meta_directory = /etc/postfix
shlib_directory = /usr/lib/postfix
mail_owner = postfix
setgid_group = postdrop
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mx.{DOMAIN}
mydestination =
local_recipient_maps =
alias_maps =
alias_database =
mynetworks = 127.0.0.0/8
virtual_mailbox_domains = {DOMAIN}
virtual_mailbox_maps = proxy:ldap:{at}/conf/users.cf
transport_maps = proxy:ldap:{at}/conf/route.cf
proxy_read_maps = $virtual_mailbox_maps $transport_maps $virtual_mailbox_domains
maillog_file = {self.log}
maillog_file_prefixes = {self.directory}
smtputf8_enable = no
{tls}
smtp_tls_security_level = none
lmtp_tls_security_level = none
message_size_limit = 52428800
mailbox_size_limit = 0
disable_dns_lookups = yes
smtpd_peername_lookup = no
in_flow_delay = 0
lmtp_destination_concurrency_limit = 20
""")
        services = []
        left_out = ("maildrop", "uucp", "ifmail", "bsmtp", "scalemail-backend", "mailman", "pickup", "postlog")
        for line in read("/etc/postfix/master.cf.proto").splitlines():
            words = line.split()
            if len(words) < 8 or line[0] in "# \t" or words[0] in left_out:
                continue
            if words[:2] == ["smtp", "inet"]:
                words[0] = f"127.0.0.1:{self.smtp}"
            words[4] = "n"  # no chroot: the data is not where the package expects it
            services.append(" ".join(words))
        if self.tls:
            services.append(f"127.0.0.1:{self.smtps} inet n - n - - smtpd -o smtpd_tls_wrappermode=yes")
        services += ["pickup unix n - n 60 1 pickup", "postlog unix-dgram n - n - 1 postlogd"]
        write(f"{at}/conf/master.cf", "\n".join(services) + "\n")
        self.group.start(["postfix", "-c", f"{at}/conf", "start-fg"], f"{at}/out")
        wait_port(self.smtp)

    def delivered(self):
        if os.path.exists(self.log):
            with open(self.log, "rb") as file:
                file.seek(self.seen)
                text = file.read()
            whole = text.rfind(b"\n") + 1
            self.seen += whole
            self.count += text[:whole].count(b"status=sent")
        return self.count


def flushes(directory):
    """How often the disk that holds a directory was told to flush, since the machine started."""
    number = os.stat(directory).st_dev
    device = os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if os.path.exists(f"{device}/partition"):  # a partition counts none, its disk does
        device = os.path.dirname(device)
    fields = read(f"{device}/stat").split()
    if len(fields) < 16:
        sys.exit(f"nothing counts the flushes of the disk of {directory}")
    return int(fields[15])


def ledger_of(peer, options):
    return f"{options.directory}/ledger-of-{peer.group.name}"


def trust(options):
    return ["--tls-ca", f"{options.directory}/certificate.pem", "--tls-name", "localhost"]


def load(peer, options, messages, *more, size=None, users=None, implicit=False):
    """Runs the generator, waits until the last message is delivered, and measures the server meanwhile; then waits until it is
    idle, so that nothing it has put off falls into the next measurement. `implicit` is TLS from the first byte."""
    report = f"{options.directory}/report.json"
    before, cpu, began = peer.delivered(), peer.group.cpu_seconds(), time.monotonic()
    flushed = flushes(options.directory)
    smtp = ["--smtp", f"127.0.0.1:{peer.smtps}", "--smtps", *trust(options)] if implicit else ["--smtp", f"127.0.0.1:{peer.smtp}"]
    run(LOADTEST, "run", *smtp, "--users", users or f"{options.directory}/users",
        "--messages", str(messages), "--size", str(size or options.size), "--sessions", str(options.sessions), "--senders", "null",
        "--ledger", ledger_of(peer, options), "--quiet", "--json", report, "--durability", "synced before 250",
        "--data-dir", options.directory, *more)
    while peer.delivered() < before + messages:
        if time.monotonic() > began + 900:
            sys.exit(f"{peer.name}: not all delivered after 900 s")
        time.sleep(0.02)
    seconds = time.monotonic() - began
    used, pss, flushed = peer.group.cpu_seconds() - cpu, peer.group.pss_mb(), flushes(options.directory) - flushed
    peer.group.wait_idle()
    figures = json.loads(read(report))
    # of an open loop: what was due and had to wait counts from when it was due
    due = (figures["open"] or {}).get("due_to_reply", {"p50_ms": 0, "p99_ms": 0})
    if (figures["open"] or {}).get("behind"):
        print(f"the generator did not keep up: it {figures['open']['behind']}", file=sys.stderr)
        due = {"p50_ms": float("nan"), "p99_ms": float("nan")}
    return {
        "accepted/s": figures["accept_rate"],
        "delivered/s": messages / seconds,
        "p50": figures["data_to_reply"]["p50_ms"],
        "p99": figures["data_to_reply"]["p99_ms"],
        "due p50": due["p50_ms"],
        "due p99": due["p99_ms"],
        "cpu": used / messages * 1000,
        "cpu until idle": (peer.group.cpu_seconds() - cpu) / messages * 1000,
        "generator": figures["generator"]["cpu_s_per_1000"],
        "tls": figures["conditions"]["tls"],
        "connections": figures["connections"],
        "pss": pss,
        "flushes": flushed / messages,
    }


def shown(figures):
    return " ".join(f"{key}={value:.2f}" for key, value in figures.items() if isinstance(value, float))


def warm(peer, options):
    """Every mailbox is there before anything is measured."""
    print(f"{peer.name}: one message to warm it for each user", file=sys.stderr)
    load(peer, options, options.users, "--in-turn", size=1024)


def prepare(options):
    """A directory for all of a run, with its users; it goes, and all servers end, when the program ends."""
    os.umask(0o022)
    options.directory = directory = tempfile.mkdtemp(prefix="measure.", dir=options.state)
    os.chmod(directory, 0o755)
    atexit.register(clean_up, directory, options.keep)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    run(LOADTEST, "users", "--count", str(options.users), "--domain", DOMAIN, "--mbox", "mbox1,mbox2",
        "--ldif", f"{directory}/directory.ldif", "--users", f"{directory}/users")
    options.first = read(f"{directory}/users").split()[0]
    if options.tls:
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
            "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", f"{directory}/key.pem",
            "-out", f"{directory}/certificate.pem")


def drain(peer, options, logins, mails, implicit=False):
    """Fills maildrops of some users and then retrieves and deletes all that, one login after the other; mails per second."""
    report = f"{options.directory}/drain.json"
    pop3 = ["--pop3s", f"127.0.0.1:{peer.pop3s}", *trust(options)] if implicit else ["--pop3", f"127.0.0.1:{peer.pop3}"]
    run(LOADTEST, "pop3-drain", *pop3, "--fill", f"127.0.0.1:{peer.smtp}", "--size", str(options.size),
        "--users", f"{options.directory}/users", "--logins", str(logins), "--mails", str(mails), "--wait", "600",
        "--durability", "synced before 250", "--data-dir", options.directory, "--server-cgroup", peer.group.path,
        "--quiet", "--json", report)
    return json.loads(read(report))


def verify(peer, options):
    """Reads every mailbox by POP3 and holds it against the ledger; the verdict's line."""
    said = run(LOADTEST, "verify", "--ledger", ledger_of(peer, options), "--users", f"{options.directory}/users",
               "--pop3", f"127.0.0.1:{peer.pop3}", "--quiet", "--wait", "120")
    return said.strip().splitlines()[-1]


def clean_up(directory, keep):
    for group in {group for group, _ in STARTED}:
        group.end()
    if not keep:
        shutil.rmtree(directory, ignore_errors=True)
