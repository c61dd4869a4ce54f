"""What Relais keeps: one database and one blob store, both durable before anybody is told so.

`metadata` is the one SQLAlchemy `MetaData`; each package declares its tables on it in its own `tables.py`.
"""

from sqlalchemy import MetaData

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)

__all__ = ["metadata"]
