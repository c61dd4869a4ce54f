"""The page a person sees who follows the QR code or types the name of the service: in French, without script, the same
for everybody but for the address they came with.
"""

from __future__ import annotations

from html import escape

from mta.mailboxes.services import AddressBook, ClientServices, Security, Service

_SECURITY = {Security.TLS: "SSL/TLS", Security.STARTTLS: "STARTTLS"}
OUTLOOK = (
    "Outlook : version classique pour Windows seulement. Le « nouvel Outlook » et Outlook pour téléphone confieraient "
    "votre mot de passe et votre courrier à leur éditeur : ne les utilisez pas."
)
_STYLE = """
body { font: 1.1rem/1.5 system-ui, sans-serif; max-width: 42rem; margin: 0 auto; padding: 1rem; color: #1b1b1b;
  background: #fff }
a { color: #00408a }
a.action { display: inline-block; padding: .7rem 1.2rem; border-radius: .4rem; background: #00408a; color: #fff;
  font-weight: bold }
table { border-collapse: collapse; width: 100% }
th, td { border: 1px solid #777; padding: .4rem .6rem; text-align: left }
:focus-visible { outline: 3px solid #b35c00; outline-offset: 2px }
"""


def settings_rows(services: ClientServices) -> list[tuple[str, str, int, str]]:
    """What somebody types who configures by hand: use, host, port, protection; in French."""

    def row(use: str, service: Service) -> tuple[str, str, int, str]:
        return use, service.host, service.port, _SECURITY[service.security]

    rows = [row("Réception (IMAP)", services.imap)]
    rows += [
        row("Envoi (SMTP)" if number == 0 else "Envoi, à défaut", each)
        for number, each in enumerate(services.submission)
    ]
    if services.sieve is not None:
        rows.append(row("Filtres (Sieve)", services.sieve))
    if services.address_book is not None:
        rows.append(row("Annuaire (LDAP)", services.address_book.service))
    return rows


def address_book_words(book: AddressBook) -> str:
    """What somebody types who configures the address book by hand, besides its server; in French."""
    login = f" Identifiant : {book.login} ; son mot de passe vous est remis à part." if book.login else ""
    return f"Annuaire : base de recherche {book.base}.{login}"


def page(services: ClientServices, address: str) -> bytes:
    """HTML, UTF-8. `address` is one of our domains', or empty."""
    name = escape(services.name)
    profile = f"profil.mobileconfig{services.query(address)}"
    who = f"<p>Votre adresse : <strong>{escape(address)}</strong></p>" if address else ""
    rows = "".join(
        f'<tr><th scope="row">{use}</th><td>{escape(host)}</td><td>{port}</td><td>{security}</td></tr>'
        for use, host, port, security in settings_rows(services)
    )
    book = services.address_book
    directory = f"<p>{escape(address_book_words(book))}</p>" if book else ""
    authority = ""
    if services.authorities:
        authority = (
            "<p>Si votre appareil ne reconnaît pas nos certificats : "
            '<a href="autorites.pem">certificats des autorités</a>.</p>'
        )
    return f"""<!DOCTYPE html>
<html lang="fr"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Configurer votre messagerie - {name}</title><style>{_STYLE}</style></head>
<body><main><h1>Configurer votre messagerie sécurisée de santé</h1>
<p>{name}</p>
{who}
<h2>iPhone, iPad ou Mac</h2>
<p><a class="action" href="{profile}">Télécharger le profil</a></p>
<p>Ouvrez ensuite Réglages, puis « Profil téléchargé », et installez-le. Votre mot de passe vous est demandé à ce
moment.</p>
<h2>Thunderbird, ou une application Android comme K-9 Mail</h2>
<p>Ajoutez un compte : votre adresse et votre mot de passe suffisent, le reste est trouvé tout seul.</p>
<h2>Les autres logiciels</h2>
<p>{OUTLOOK}</p>
<p>Donnez votre adresse. Si le logiciel demande des réglages, choisissez IMAP et recopiez ceux-ci :</p>
<table><thead><tr><th scope="col">Usage</th><th scope="col">Serveur</th><th scope="col">Port</th>
<th scope="col">Sécurité</th></tr></thead><tbody>{rows}</tbody></table>
<p>Nom d’utilisateur : votre adresse entière. Mot de passe : celui qui vous a été remis, ou un mot de passe
d’application.</p>
{directory}{authority}
</main></body></html>
""".encode()
