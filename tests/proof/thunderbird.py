"""Debian's Thunderbird, headless, in a network of its own where all ports are the usual ones: driven from outside.

`python -m tests.proof.thunderbird FOLDER`, which the test beside it starts, runs inside `unshare --net --mount`: a
loopback that belongs to nobody else, a resolv.conf of its own, `relais up` on 993, 465, 587 and 443, a name server on
53 with what `relais doctor --dns` prints. Thunderbird gets a profile that believes the demonstration's authority and
knows nothing else. Marionette, its own remote control, runs scripts of ours with its privileges; pictures and
`result.json` go into FOLDER.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.discovering import network
from tests.support.private import give, service_directory, start_unprivileged, until
from tests.support.running import Running, _prepared

MAIL_HOST = "mss.test-ci-sis.mssante.fr"
DOCTOR = "adam.hoda@test-ci-sis.mssante.fr"
HOSPITAL = "cardiologie@ch-bellevue.mssante.fr"
NOTE = b"%PDF-1.4\n% note\n%%EOF\n"
REPORT = Path(__file__).parents[2] / "config" / "demo" / "report.hl7"
_PORTS = {"imaps": 993, "submissions-ville": 465, "submission-ville": 587, "discovery-ville": 443}
_PREFERENCES = {
    "app.update.auto": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "toolkit.telemetry.enabled": False,
    "mailnews.start_page.enabled": False,
    "mail.shell.checkDefaultClient": False,
    "mail.rights.version": 1,
    "mailnews.auto_config_url": "",
    "browser.safebrowsing.enabled": False,
    "extensions.update.enabled": False,
    "intl.locale.requested": "fr,en-US",
}


class Marionette:
    """Gecko's remote control: JSON over TCP, `length:[type, id, name, parameters]`."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 60)
        self._socket.settimeout(120)
        self._file = self._socket.makefile("rb")
        self._number = 0
        self._read()
        self("WebDriver:NewSession", {})
        self("Marionette:SetContext", {"value": "chrome"})
        self("WebDriver:SetTimeouts", {"script": 100_000})

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def __call__(self, name: str, parameters: dict[str, Any]) -> Any:
        self._number += 1
        text = json.dumps([0, self._number, name, parameters]).encode()
        self._socket.sendall(b"%d:%s" % (len(text), text))
        _, _, error, result = self._read()
        assert error is None, f"{error['error']}: {error['message']}\n{error['stacktrace']}"
        return result

    def script(self, text: str, *arguments: Any) -> Any:
        """The value an async function of that text returns."""
        body = (
            "const done = arguments[arguments.length - 1];"
            f"(async function () {{ {text} }}).apply(null, arguments)"
            ".then(value => done({value}), error => done({error: String(error) + ' ' + error.stack}));"
        )
        answer = self("WebDriver:ExecuteAsyncScript", {"script": body, "args": list(arguments)})["value"]
        assert "error" not in answer, answer["error"]
        return answer.get("value")

    def _read(self) -> Any:
        size = b""
        while (octet := self._file.read(1)) != b":":
            assert octet, "Thunderbird has gone"
            size += octet
        return json.loads(self._file.read(int(size)))


@contextmanager
def thunderbird(home: Path, ca_file: str) -> Iterator[Marionette]:
    """One that was never started before."""
    profile = home / "profile"
    profile.mkdir()
    database = f"sql:{profile}"
    for argv in (("-N", "--empty-password"), ("-A", "-n", "authority", "-t", "C,C,", "-i", ca_file)):
        subprocess.run(["certutil", *argv, "-d", database], check=True)
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in _PREFERENCES.items()]
    (profile / "user.js").write_text("\n".join(lines))
    give(home)
    with (home / "thunderbird.log").open("wb") as log:
        process = start_unprivileged(
            ["thunderbird", "--headless", "--marionette", "--remote-allow-system-access", "--profile", str(profile)],
            env={"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "fr_FR.UTF-8", "MOZ_HEADLESS_WIDTH": "1280"}
            | {"MOZ_HEADLESS_HEIGHT": "800"},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        until(lambda: _listens(2828) or process.poll() is not None, 60, "Thunderbird")
        control = Marionette(2828)
        yield control
        control.close()
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


@contextmanager
def gateway() -> Iterator[Running]:
    """`relais up` on the usual ports, and a name server that says so."""
    Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.environ["RELAIS_DISCOVERY__MAIL_HOST"] = MAIL_HOST
    with service_directory() as place:
        shutil.copytree(_prepared(), place / "state")
        (place / "state" / "ports.json").write_text(json.dumps(_PORTS))
        (place / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        subprocess.run(["mount", "--bind", str(place / "resolv.conf"), "/etc/resolv.conf"], check=True)
        give(place)
        up = Running(place / "state")
        up.start()
        try:
            with network(up.state, up.endpoints["ca_file"], 53) as (_, names):
                names.add(MAIL_HOST, "A", "127.0.0.1")
                yield up
        finally:
            up.stop()
            subprocess.run(["umount", "/etc/resolv.conf"], check=True)


def picture(control: Marionette, path: Path, kind: str) -> None:
    """What a window of that type shows, as PNG."""
    url = control.script(_PICTURE, kind)
    path.write_bytes(base64.b64decode(url.partition(",")[2]))


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


def main(folder: Path) -> None:
    """Set the account up, read the report, send a letter; what was seen, into `folder`."""
    seen: dict[str, Any] = {}
    with gateway() as up, service_directory() as home:
        (password,) = (each["password"] for each in up.endpoints["accounts"] if each["address"] == DOCTOR)
        note = home / "note.pdf"
        note.write_bytes(NOTE)
        # This reader's program judges signatures itself, so the mail is filed as it was signed (docs/arrivals.md).
        own = {"verdict_line": "no", "summary": "no"}
        up.ask("ville", "mailbox.preferences", name=DOCTOR, values=own, by="proof")
        up.accepted(REPORT.read_bytes())
        up.wait_settled()
        # msmtp looks for SRV records by itself, through the machine's resolver.
        asked = subprocess.run(["msmtp", f"--configure={DOCTOR}"], capture_output=True, check=False)
        seen["msmtp"] = asked.stdout.decode()
        with thunderbird(home, up.endpoints["ca_file"]) as control:
            control.script(_HUB + _ADDRESS, "Dr Adam HODA", DOCTOR)
            picture(control, folder / "thunderbird-found.png", "mail:3pane")
            seen["account"] = control.script(_HUB + _PASSWORD, password)
            seen["report"] = control.script(_HUB + _READ)
            picture(control, folder / "thunderbird-report.png", "mail:3pane")
            control.script(_HUB + _WRITE, HOSPITAL, str(note))
            picture(control, folder / "thunderbird-letter.png", "msgcompose")
            seen["windows"] = control.script(_HUB + _SEND)
        up.wait_settled()
        until(lambda: bool(up.mails("hospital")), 20, "the letter")
        (mail,) = up.mails("hospital")
        seen["letter"] = {
            "subject": mail["Subject"],
            "verdict": mail["X-Relais-Verdict"],
            "attached": [
                part.get_payload(decode=True) == NOTE for part in mail.walk() if part.get_filename() == note.name
            ],
        }
    (folder / "result.json").write_text(json.dumps(seen))


_PICTURE = """
const window = Services.wm.getMostRecentWindow(arguments[0]);
await new Promise(resolve => window.requestAnimationFrame(() => window.requestAnimationFrame(resolve)));
const image = await window.browsingContext.currentWindowGlobal.drawSnapshot(null, 1, "white");
const canvas = window.document.createElementNS("http://www.w3.org/1999/xhtml", "canvas");
canvas.width = image.width;
canvas.height = image.height;
canvas.getContext("2d").drawImage(image, 0, 0);
return canvas.toDataURL("image/png");
"""

# The parts of the account hub stand in shadow trees: everything that is shown of it, found by its identifier.
_HUB = """
const main = Services.wm.getMostRecentWindow("mail:3pane");
const { MailServices } = ChromeUtils.importESModule("resource:///modules/MailServices.sys.mjs");
const imap = () => MailServices.accounts.accounts.find(each => each.incomingServer.type == "imap");
const soon = () => new Promise(resolve => main.setTimeout(resolve, 100));
async function until(what, condition) {
  for (let turn = 0; turn < 600; turn++) {
    const found = condition();
    if (found) return found;
    await soon();
  }
  throw new Error("never: " + what);
}
function below(root) {
  return [...root.querySelectorAll("*")].flatMap(each => [each, ...(each.shadowRoot ? below(each.shadowRoot) : [])]);
}
function shown(id) {
  const hub = main.document.querySelector("account-hub-container");
  return below(hub.shadowRoot ?? hub).find(e => e.id == id && e.getClientRects().length && !e.disabled);
}
async function fill(id, value) {
  const field = await until(id, () => shown(id));
  field.focus();
  field.value = value;
  for (const event of ["input", "change"]) {
    field.dispatchEvent(new main.Event(event, { bubbles: true, composed: true }));
  }
}
async function press(id) {
  (await until(id, () => shown(id))).click();
}
"""

_ADDRESS = """
await fill("realName", arguments[0]);
await fill("email", arguments[1]);
await press("forward");
await until("settings found", () => shown("editConfiguration"));
"""

_PASSWORD = """
await press("forward");
await fill("password", arguments[0]);
await press("forward");
await until("account made", () => shown("custom"));
await press("forward");
const { incomingServer: server, defaultIdentity: identity } = imap();
const smtp = MailServices.outgoingServer.getServerByIdentity(identity);
return {
  imap: [Services.io.newURI(server.serverURI).host, server.port, server.socketType, server.username],
  smtp: [smtp.serverURI.host, smtp.serverURI.port, smtp.socketType, smtp.username],
  exceptions: Cc["@mozilla.org/security/certoverride;1"].getService(Ci.nsICertOverrideService).getOverrides().length,
};
"""

_READ = """
const inbox = imap().incomingServer.rootFolder.getFolderWithFlags(Ci.nsMsgFolderFlags.Inbox);
const tabs = main.document.getElementById("tabmail");
tabs.currentAbout3Pane.displayFolder(inbox.URI);
await until("a message", () => inbox.getTotalMessages(false));
await until("a line", () => tabs.currentAbout3Pane.gDBView?.rowCount);
tabs.currentAbout3Pane.threadTree.selectedIndex = 0;
const text = () => tabs.currentAboutMessage?.getMessagePaneBrowser()?.contentDocument?.body?.innerText ?? "";
await until("its text", () => text().includes("RÉSULTATS"));
const message = tabs.currentAboutMessage;
await until("its signature", () => message.gSignatureStatus != -1);
return {
  subject: [...inbox.messages][0].mime2DecodedSubject,
  text: text(),
  signature: message.gSignatureStatus,
  attachments: message.currentAttachments.map(each => [each.name, each.contentType]),
};
"""

_WRITE = """
const make = (name, kind) => Cc[`@mozilla.org/messengercompose/${name};1`].createInstance(kind);
const file = Cc["@mozilla.org/file/local;1"].createInstance(Ci.nsIFile);
file.initWithPath(arguments[1]);
const attachment = make("attachment", Ci.nsIMsgAttachment);
attachment.url = Services.io.newFileURI(file).spec;
attachment.name = file.leafName;
attachment.contentType = "application/pdf";
attachment.size = file.fileSize;
const fields = make("composefields", Ci.nsIMsgCompFields);
fields.to = arguments[0];
fields.subject = "Précision demandée";
fields.body = "Bonjour,\\nPouvez-vous préciser la méthode ?\\n";
fields.addAttachment(attachment);
const params = make("composeparams", Ci.nsIMsgComposeParams);
params.composeFields = fields;
params.identity = imap().defaultIdentity;
params.type = Ci.nsIMsgCompType.New;
params.format = Ci.nsIMsgCompFormat.PlainText;
MailServices.compose.OpenComposeWindowWithParams(null, params);
await until("a letter", () => Services.wm.getMostRecentWindow("msgcompose")?.gMsgCompose?.editor);
await until("its attachment", () => Services.wm.getMostRecentWindow("msgcompose").gAttachmentBucket?.itemCount);
"""

_SEND = """
Services.wm.getMostRecentWindow("msgcompose").goDoCommand("cmd_sendNow");
await until("it is sent", () => !Services.wm.getMostRecentWindow("msgcompose"));
return [...Services.wm.getEnumerator(null)].map(each => each.location.href);
"""

if __name__ == "__main__":
    main(Path(sys.argv[1]))
