"""Which SQL functions are known to read no table.

`func.anything()` may be a function that somebody made in the database, and may read whatever tables it likes. Those
that come with SQLite, PostgreSQL, MariaDB and MySQL, and are in common use, are listed here. Others may also write: a
transaction that calls one runs directly on the target, as with SQL text. A function of the database's own that is
missing here costs that, never a wrong read.
"""

from __future__ import annotations

from typing import Final

__all__ = ["reads_no_table"]

_AGGREGATES: Final = """
    aggregate_strings any any_ any_value array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count covar_pop
    covar_samp every group_concat grouping json_agg json_arrayagg json_group_array json_group_object json_object_agg
    json_objectagg jsonb_agg jsonb_object_agg listagg max median min mode percentile_cont percentile_disc range_agg
    regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope some std stddev stddev_pop stddev_samp string_agg
    sum total var_pop var_samp variance xmlagg all_ all
"""
_WINDOWS: Final = """
    cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank row_number
"""
_GROUPS: Final = "cube grouping_sets rollup"
_CONDITIONS: Final = "coalesce greatest if ifnull iif isnull least nullif num_nonnulls num_nulls nvl nvl2"
_NUMBERS: Final = """
    abs acos acosh asin asinh atan atan2 atanh bin cbrt ceil ceiling conv cos cosh cot crc32 degrees div exp floor gcd
    hex lcm ln log log10 log2 mod oct pi pow power radians rand random round sign sin sinh sqrt tan tanh to_hex trunc
    truncate unhex width_bucket
"""
_TEXTS: Final = """
    ascii bit_count bit_length btrim char char_length character_length chr concat concat_ws decode elt encode field
    find_in_set format format_number from_base64 initcap insert instr inet_aton inet_ntoa lcase left length like
    locate lower lpad ltrim md5 mid normalize octet_length ord overlay position printf quote quote_ident quote_literal
    quote_nullable regexp_count regexp_instr regexp_like regexp_match regexp_matches regexp_replace
    regexp_split_to_array regexp_split_to_table regexp_substr repeat replace reverse right rpad rtrim sha sha1 sha2
    sha224 sha256 sha384 sha512 similarity soundex space split_part starts_with strcmp string_to_array
    string_to_table strpos substr substring substring_index to_ascii to_base64 translate trim typeof ucase unaccent
    unicode unistr upper weight_string
"""
_TIMES: Final = """
    adddate addtime age clock_timestamp convert_tz curdate current_date current_time current_timestamp curtime date
    date_add date_bin date_format date_part date_sub date_trunc datediff datetime day dayname dayofmonth dayofweek
    dayofyear extract from_days from_unixtime get_format hour isfinite julianday justify_days justify_hours
    justify_interval last_day localtime localtimestamp make_date make_interval make_time make_timestamp
    make_timestamptz makedate maketime microsecond minute month monthname now period_add period_diff quarter
    sec_to_time second statement_timestamp str_to_date strftime subdate subtime sysdate time time_format time_to_sec
    timediff timeofday timestamp timestampadd timestampdiff timezone to_char to_date to_days to_number to_seconds
    to_timestamp transaction_timestamp unix_timestamp unixepoch utc_date utc_time utc_timestamp week weekday
    weekofyear year yearweek
"""
_DOCUMENTS: Final = """
    json json_array json_array_append json_array_elements json_array_elements_text json_array_insert json_array_length
    json_build_array json_build_object json_compact json_contains json_contains_path json_depth json_detailed json_each
    json_each_text json_equals json_exists json_extract json_extract_path json_extract_path_text json_insert json_keys
    json_length json_loose json_merge json_merge_patch json_merge_preserve json_normalize json_object json_object_keys
    json_overlaps json_patch json_populate_record json_populate_recordset json_pretty json_query json_quote json_remove
    json_replace json_search json_set json_strip_nulls json_table json_to_record json_to_recordset json_tree json_type
    json_typeof json_unquote json_valid json_value jsonb jsonb_array_elements jsonb_array_elements_text
    jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text jsonb_extract_path
    jsonb_extract_path_text jsonb_insert jsonb_object jsonb_object_keys jsonb_path_exists jsonb_path_match
    jsonb_path_query jsonb_path_query_array jsonb_path_query_first jsonb_populate_record jsonb_populate_recordset
    jsonb_pretty jsonb_set jsonb_set_lax jsonb_strip_nulls jsonb_to_record jsonb_to_recordset jsonb_typeof
    row_to_json to_json to_jsonb
"""
_ARRAYS: Final = """
    array array_append array_cat array_dims array_fill array_length array_lower array_ndims array_position
    array_positions array_prepend array_remove array_replace array_to_json array_to_string array_upper cardinality
    generate_series generate_subscripts isempty lower_inc lower_inf multirange range_merge row trim_array unnest
    upper_inc upper_inf int4range int8range numrange tsrange tstzrange daterange akeys avals hstore skeys svals
"""
_SEARCH: Final = """
    bm25 highlight match numnode phraseto_tsquery plainto_tsquery querytree setweight snippet strip to_tsquery
    to_tsvector ts_headline ts_rank ts_rank_cd tsvector_to_array websearch_to_tsquery
"""
_REST: Final = """
    cast changes collate convert currval current_user database gen_random_uuid get_byte get_bit host inet_same_family
    last_insert_id last_insert_rowid lastval masklen netmask network next_value nextval random_bytes randomblob
    session_user set_byte sqlite_version system_user total_changes txid_current user uuid uuid_generate_v4 uuid_short
    uuidv4 uuidv7 version zeroblob
"""

_KNOWN: Final = frozenset(
    " ".join(
        (_AGGREGATES, _WINDOWS, _GROUPS, _CONDITIONS, _NUMBERS, _TEXTS, _TIMES, _DOCUMENTS, _ARRAYS, _SEARCH, _REST)
    ).split()
)


def reads_no_table(function: object) -> bool:
    """Whether a function element of SQLAlchemy's is one of these; with a package (`func.accounting.sum()`) it is not.

    Those of geometry, whose names all begin with "st_", count among them.
    """
    name = getattr(function, "name", None)
    packages = [str(package).lower() for package in getattr(function, "packagenames", None) or ()]
    if not isinstance(name, str) or packages not in ([], ["pg_catalog"]):
        return False
    return name.lower() in _KNOWN or name.lower().startswith("st_")
