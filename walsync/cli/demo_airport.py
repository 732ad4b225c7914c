"""What `walsync demo` imports: the departures of an invented airport, made from the transaction's number.

The same number always gives the same transaction. So the demonstration can say what must be in the database without
having kept it, and go on after a crash from a count. This module is also the program that the demonstration kills:

    python -m walsync.cli.demo_airport DATABASE_URL LOG_DIRECTORY

It commits transaction after transaction, writes the number of each to its standard output *after* the commit has
returned, and stops only when it is killed or its standard input is closed.
"""

from __future__ import annotations

import random
import sys
from datetime import datetime, timedelta
from decimal import Decimal

from sqlalchemy import ForeignKey, Numeric, String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, sessionmaker

import walsync

__all__ = ["AIRLINES", "FLIGHTS_PER_TRANSACTION", "Airline", "Base", "Flight", "flights_of_transaction", "write"]

FLIGHTS_PER_TRANSACTION = 5
WRITER_STOPS_AFTER = 2_000

AIRLINES = {
    "AB": "Albatross Airways",
    "CN": "Crane Air",
    "HR": "Heron Regional",
    "KT": "Kittiwake",
    "SW": "Swift Express",
    "TN": "Tern Atlantic",
}
_DESTINATIONS = (
    "ACC",
    "BCN",
    "CPH",
    "DUB",
    "EDI",
    "FRA",
    "GVA",
    "HEL",
    "IST",
    "JNB",
    "KEF",
    "LIS",
    "OSL",
    "PRG",
    "VIE",
)
_FIRST_DEPARTURE = datetime(2026, 1, 1, 5, 0)  # noqa: DTZ001 (an airport's timetable is in local time)


class Base(DeclarativeBase):
    pass


class Airline(Base):
    __tablename__ = "airlines"

    code: Mapped[str] = mapped_column(String(2), primary_key=True)
    name: Mapped[str] = mapped_column(String(40))


class Flight(Base):
    __tablename__ = "flights"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    airline_code: Mapped[str] = mapped_column(ForeignKey("airlines.code"))
    destination: Mapped[str] = mapped_column(String(3))
    departs_at: Mapped[datetime]
    delay_minutes: Mapped[int | None]  # None: cancelled.
    passengers: Mapped[int]
    revenue: Mapped[Decimal] = mapped_column(Numeric(10, 2))

    airline: Mapped[Airline] = relationship()


def flights_of_transaction(number: int) -> list[Flight]:
    """The flights that transaction `number`, counted from 1, inserts."""
    chance = random.Random(number)
    flights = []
    for place in range(FLIGHTS_PER_TRANSACTION):
        flight_number = (number - 1) * FLIGHTS_PER_TRANSACTION + place + 1
        passengers = chance.randint(20, 220)
        flights.append(
            Flight(
                number=flight_number,
                airline_code=chance.choice(sorted(AIRLINES)),
                destination=chance.choice(_DESTINATIONS),
                departs_at=_FIRST_DEPARTURE + timedelta(minutes=4 * flight_number),
                delay_minutes=None if chance.random() < 0.02 else max(-10, int(chance.gauss(8, 20))),
                passengers=passengers,
                revenue=Decimal(passengers * chance.randint(39_00, 420_00)) / 100,
            )
        )
    return flights


def write(database_url: str, log_directory: str) -> None:
    """Commits transactions from the first on, and acknowledges each on standard output once it is durable."""
    factory = sessionmaker(create_engine(database_url))
    with walsync.attach(factory, log_directory):
        with factory() as session:
            session.add_all(Airline(code=code, name=name) for code, name in AIRLINES.items())
            session.commit()
        for number in range(1, WRITER_STOPS_AFTER + 1):
            with factory() as session:
                session.add_all(flights_of_transaction(number))
                session.commit()
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    write(*sys.argv[1:])
