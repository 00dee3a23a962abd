//! From text to a syntax tree, with the literals of Spark that the parser does not know.

use std::any::TypeId;

use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr, Statement};
use datafusion::sql::sqlparser::dialect::{Dialect, SparkSqlDialect};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer, Whitespace, Word};

use super::functions::call;
use super::intervals;

/// Spark's typed number literals: `1.5D` is a DOUBLE, `10S` a SMALLINT.
const SUFFIXES: &[(&str, &str)] =
    &[("D", "DOUBLE"), ("F", "FLOAT"), ("S", "SMALLINT"), ("Y", "TINYINT"), ("L", "BIGINT"), ("BD", "BD")];

/// Parses statements.
pub(crate) fn parse_statements(sql: &str) -> Result<Vec<Statement>, ParserError> {
    Parser::new(&SPARK).with_tokens_with_locations(tokens(sql)?).parse_statements()
}

/// Parses one expression, which must be all there is.
pub(crate) fn parse_expression(sql: &str) -> Result<Expr, ParserError> {
    let mut parser = Parser::new(&SPARK).with_tokens_with_locations(tokens(sql)?);
    let expr = parser.parse_expr()?;
    let rest = parser.peek_token();
    if rest.token == Token::EOF {
        return Ok(expr);
    }
    Err(ParserError::ParserError(format!("a predicate ends before `{rest}`{}", rest.span.start)))
}

/// Spark's dialect with what the parser's own one does not know: `\'` in a text, `<<`, `>>` and `>>>`, and how strongly `div` binds.
#[derive(Debug)]
struct Spark(SparkSqlDialect);

const SPARK: Spark = Spark(SparkSqlDialect {});

/// How strongly `<<` and its like bind: less than `+`, more than `&`.
const SHIFTS: u8 = 25;

/// Forwards questions to the parser's dialect.
macro_rules! as_there {
    ($($name:ident),*) => {$(
        fn $name(&self) -> bool {
            self.0.$name()
        }
    )*};
}

impl Dialect for Spark {
    fn dialect(&self) -> TypeId {
        TypeId::of::<SparkSqlDialect>()
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        self.0.is_delimited_identifier_start(ch)
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        self.0.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        self.0.is_identifier_part(ch)
    }

    as_there!(
        supports_filter_during_aggregation,
        supports_group_by_expr,
        supports_group_by_with_modifier,
        supports_lambda_functions,
        supports_select_wildcard_except,
        supports_struct_literal,
        supports_nested_comments,
        supports_create_table_using,
        supports_long_type_as_bigint,
        supports_values_as_table_factor,
        require_interval_qualifier,
        supports_bang_not_operator,
        supports_select_item_multi_column_alias,
        supports_cte_without_as,
        supports_map_literal_with_angle_brackets
    );

    fn supports_string_literal_backslash_escape(&self) -> bool {
        true
    }

    fn supports_bitwise_shift_operators(&self) -> bool {
        true
    }

    fn allow_extract_custom(&self) -> bool {
        true
    }

    fn get_next_precedence(&self, parser: &Parser) -> Option<Result<u8, ParserError>> {
        matches!(parser.peek_token_ref().token, Token::ShiftLeft | Token::ShiftRight).then_some(Ok(SHIFTS))
    }

    fn parse_infix(&self, parser: &mut Parser, left: &Expr, precedence: u8) -> Option<Result<Expr, ParserError>> {
        if parser.parse_keyword(Keyword::DIV) {
            let left = Box::new(left.clone());
            let div = |right| Expr::BinaryOp { left, op: BinaryOperator::MyIntegerDivide, right: Box::new(right) };
            return Some(parser.parse_subexpr(precedence).map(div));
        }
        if parser.peek_token_ref().token == Token::ShiftRight && parser.peek_nth_token_ref(1).token == Token::Gt {
            parser.advance_token();
            parser.advance_token();
            return Some(parser.parse_subexpr(precedence).map(|right| call(UNSIGNED_SHIFT, vec![left.clone(), right])));
        }
        None
    }
}

/// What stands for `>>>`.
pub(super) const UNSIGNED_SHIFT: &str = "__shift_right_unsigned";

/// The tokens of a text as they are written: what stands between quotes still has its escapes.
fn raw_tokens(sql: &str) -> Result<Vec<TokenWithSpan>, ParserError> {
    Tokenizer::new(&SPARK, sql)
        .with_unescape(false)
        .tokenize_with_location()
        .map_err(|error| ParserError::TokenizerError(error.to_string()))
}

/// The text that a literal between `quote`s means.
fn unescaped(literal: &str, quote: char) -> String {
    let mut text = String::with_capacity(literal.len());
    let mut chars = literal.chars();
    while let Some(c) = chars.next() {
        if c == quote {
            // A doubled quote.
            chars.next();
            text.push(quote);
            continue;
        }
        if c != '\\' {
            text.push(c);
            continue;
        }
        let rest = chars.as_str();
        let coded = |from: usize, digits: usize, radix: u32| -> Option<(char, usize)> {
            let code = rest.get(from..from + digits)?;
            if !code.chars().all(|c| c.is_digit(radix)) {
                return None;
            }
            Some((char::from_u32(u32::from_str_radix(code, radix).ok()?)?, from + digits))
        };
        let found = match rest.chars().next() {
            Some('u') => coded(1, 4, 16),
            Some('U') => coded(1, 8, 16),
            Some('0' | '1') => coded(0, 3, 8),
            _ => None,
        };
        if let Some((c, length)) = found {
            text.push(c);
            chars = rest[length..].chars();
            continue;
        }
        match chars.next() {
            Some('0') => text.push('\0'),
            Some('b') => text.push('\u{8}'),
            Some('n') => text.push('\n'),
            Some('r') => text.push('\r'),
            Some('t') => text.push('\t'),
            Some('Z') => text.push('\u{1a}'),
            // LIKE has its own use for these.
            Some(c @ ('%' | '_')) => text.extend(['\\', c]),
            Some(c) => text.push(c),
            None => {}
        }
    }
    text
}

/// Gives texts and quoted names their meaning; texts that follow each other are one.
fn literals(found: Vec<TokenWithSpan>) -> Vec<TokenWithSpan> {
    let mut tokens: Vec<TokenWithSpan> = Vec::with_capacity(found.len());
    for mut next in found {
        let is_raw = |last: Option<&TokenWithSpan>| {
            matches!(last, Some(TokenWithSpan { token: Token::Word(Word { value, quote_style: None, .. }), .. })
                if value.eq_ignore_ascii_case("r"))
        };
        let text = match &next.token {
            Token::SingleQuotedString(text) | Token::DoubleQuotedString(text) if is_raw(tokens.last()) => {
                tokens.pop();
                Some(text.clone())
            }
            Token::SingleQuotedString(text) => Some(unescaped(text, '\'')),
            Token::DoubleQuotedString(text) => Some(unescaped(text, '"')),
            _ => None,
        };
        if let Some(text) = text {
            let before = tokens.iter().rposition(|token| !matches!(token.token, Token::Whitespace(_)));
            if let Some(Token::SingleQuotedString(first)) = before.map(|at| &mut tokens[at].token) {
                first.push_str(&text);
                continue;
            }
            next.token = Token::SingleQuotedString(text);
        }
        if let Token::Word(Word { value, quote_style: Some('`'), .. }) = &mut next.token {
            *value = value.replace("``", "`");
        }
        tokens.push(next);
    }
    tokens
}

/// Forms that the parser does not know: intervals of several units, `trim(LEADING FROM x)`, `LIKE ALL (…)`.
fn known_forms(found: Vec<TokenWithSpan>) -> Vec<TokenWithSpan> {
    let mut tokens: Vec<TokenWithSpan> = Vec::with_capacity(found.len());
    let mut at = 0;
    let keyword = |token: &Token| match token {
        Token::Word(Word { keyword, quote_style: None, .. }) => *keyword,
        _ => Keyword::NoKeyword,
    };
    let mut last = Keyword::NoKeyword;
    while let Some(next) = found.get(at) {
        let span = next.span;
        let word = keyword(&next.token);
        let ahead = found[at + 1..].iter().map(|token| &token.token).find(|t| !matches!(t, Token::Whitespace(_)));
        let mut push = |token: Token| tokens.push(TokenWithSpan { token, span });
        match (word, last) {
            (Keyword::INTERVAL, _) => {
                push(next.token.clone());
                if let Some((literal, taken)) = intervals::of_several_units(&found[at + 1..]) {
                    push(Token::Whitespace(Whitespace::Space));
                    literal.into_iter().for_each(push);
                    at += taken;
                }
            }
            (Keyword::LEADING | Keyword::TRAILING | Keyword::BOTH, _)
                if ahead.is_some_and(|token| keyword(token) == Keyword::FROM) =>
            {
                push(next.token.clone());
                push(Token::Whitespace(Whitespace::Space));
                push(Token::SingleQuotedString(" ".to_owned()));
            }
            (Keyword::ANY | Keyword::SOME | Keyword::ALL, Keyword::LIKE | Keyword::ILIKE)
                if ahead == Some(&Token::LParen) =>
            {
                let name = if word == Keyword::ALL { LIKE_ALL } else { LIKE_ANY };
                push(Token::make_word(name, Some('`')));
            }
            _ => push(next.token.clone()),
        }
        if !matches!(next.token, Token::Whitespace(_)) {
            last = word;
        }
        at += 1;
    }
    tokens
}

/// What stands for the patterns of `LIKE ANY` and `LIKE ALL`.
pub(super) const LIKE_ANY: &str = "__like_any";
pub(super) const LIKE_ALL: &str = "__like_all";

/// The tokens of a text. A number with a suffix or an exponent becomes `SAFE_CAST(number AS type)`, which a person cannot write in Spark's
/// dialect; `exists(` before an array becomes an ordinary function.
fn tokens(sql: &str) -> Result<Vec<TokenWithSpan>, ParserError> {
    let found = known_forms(literals(raw_tokens(sql)?));
    let mut tokens = Vec::with_capacity(found.len());
    let mut rest = found.into_iter().peekable();
    let is_space = |token: &Token| matches!(token, Token::Whitespace(_));
    while let Some(token) = rest.next() {
        let span = token.span;
        if let Token::Number(digits, long) = &token.token {
            let next = rest.peek().map(|next| &next.token);
            let suffix = match next {
                Some(Token::Word(Word { value, quote_style: None, .. })) => {
                    SUFFIXES.iter().find(|(suffix, _)| value.eq_ignore_ascii_case(suffix)).map(|(_, name)| *name)
                }
                _ => None,
            };
            if suffix.is_some() {
                rest.next();
            }
            if let Some((literal, data_type)) = typed_number(digits, suffix.or(long.then_some("BIGINT")), &mut tokens)?
            {
                let typed = Tokenizer::new(&SparkSqlDialect {}, &data_type)
                    .tokenize()
                    .map_err(|error| ParserError::TokenizerError(error.to_string()))?;
                let before = [Token::make_keyword("SAFE_CAST"), Token::LParen, literal, Token::make_keyword("AS")];
                let all = before.into_iter().chain([Token::Whitespace(Whitespace::Space)]).chain(typed);
                tokens.extend(all.chain([Token::RParen]).map(|token| TokenWithSpan { token, span }));
                continue;
            }
        }
        if let Token::Word(word) = &token.token
            && word.quote_style.is_none()
            && word.value.eq_ignore_ascii_case("exists")
        {
            let mut ahead = rest.clone().map(|next| next.token).filter(|token| !is_space(token));
            let of_array = ahead.next() == Some(Token::LParen)
                && !matches!(
                    ahead.next(),
                    Some(Token::Word(Word {
                        keyword: Keyword::SELECT | Keyword::WITH | Keyword::FROM | Keyword::VALUES,
                        ..
                    }))
                );
            if of_array {
                tokens.push(TokenWithSpan { token: Token::make_word("exists", Some('`')), span });
                continue;
            }
        }
        tokens.push(token);
    }
    Ok(tokens)
}

/// The literal and the type of a number with a suffix, with an exponent, or with too many digits for a BIGINT; nothing for any other number. A
/// minus before the least number of a type belongs to it and is taken from `before`.
fn typed_number(
    digits: &str,
    suffix: Option<&str>,
    before: &mut Vec<TokenWithSpan>,
) -> Result<Option<(Token, String)>, ParserError> {
    let exponent = digits.contains(['e', 'E']);
    let number = |digits: &str| Token::Number(digits.to_owned(), false);
    let whole_limit = match suffix {
        Some("TINYINT") => 1 << 7,
        Some("SMALLINT") => 1 << 15,
        Some("BIGINT") => 1 << 63,
        Some("BD") => {
            let plain = without_exponent(digits);
            let data_type = decimal_type(&plain);
            return Ok(Some((number(&plain), data_type)));
        }
        Some(name) if exponent => return Ok(Some((Token::SingleQuotedString(digits.to_owned()), name.to_owned()))),
        Some(name) => return Ok(Some((number(digits), name.to_owned()))),
        None if exponent => return Ok(Some((Token::SingleQuotedString(digits.to_owned()), "DOUBLE".to_owned()))),
        None if digits.contains('.') || digits.parse::<i64>().is_ok() => return Ok(None),
        None => 1 << 63,
    };
    let name = suffix.unwrap_or("BIGINT");
    match digits.parse::<u64>() {
        Ok(value) if value < whole_limit => return Ok(Some((number(digits), name.to_owned()))),
        Ok(value) if value == whole_limit && takes_minus(before) => {
            return Ok(Some((Token::SingleQuotedString(format!("-{digits}")), name.to_owned())));
        }
        _ => {}
    }
    if suffix.is_none() {
        return Ok(Some((Token::SingleQuotedString(digits.to_owned()), decimal_type(digits))));
    }
    Err(ParserError::ParserError(format!(
        "INVALID_NUMERIC_LITERAL_RANGE: the number {digits} does not fit into {name}"
    )))
}

/// Takes a minus at the end of the tokens that is a sign; tells whether there was one.
fn takes_minus(tokens: &mut Vec<TokenWithSpan>) -> bool {
    let mut written = tokens.iter().enumerate().rev().filter(|(_, token)| !matches!(token.token, Token::Whitespace(_)));
    let Some((at, TokenWithSpan { token: Token::Minus, .. })) = written.next() else { return false };
    let is_operand = match written.next().map(|(_, before)| &before.token) {
        Some(Token::Word(word)) => word.quote_style.is_some() || word.keyword == Keyword::NoKeyword,
        Some(Token::Number(..) | Token::SingleQuotedString(_) | Token::RParen | Token::RBracket) => true,
        _ => false,
    };
    if !is_operand {
        tokens.truncate(at);
    }
    !is_operand
}

/// `1.5e2` as `150`.
fn without_exponent(digits: &str) -> String {
    let Some((mantissa, exponent)) = digits.split_once(['e', 'E']) else { return digits.to_owned() };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let Ok(exponent) = exponent.parse::<i32>() else { return digits.to_owned() };
    let all = format!("{whole}{fraction}");
    let point = whole.len() as i32 + exponent;
    match usize::try_from(point) {
        Ok(point) if point >= all.len() => format!("{all:0<point$}"),
        Ok(point) if point > 0 => format!("{}.{}", &all[..point], &all[point..]),
        _ => format!("0.{}{all}", "0".repeat(point.unsigned_abs() as usize)),
    }
}

/// The type of the literal `1.50BD`.
fn decimal_type(digits: &str) -> String {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole = whole.trim_start_matches('0').len();
    format!("DECIMAL({}, {})", (whole + fraction.len()).max(1), fraction.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_sparks_suffixes() {
        let shown = |sql| parse_expression(sql).unwrap().to_string();
        assert_eq!(shown("0.5D + 2L"), "SAFE_CAST(0.5 AS DOUBLE) + SAFE_CAST(2 AS BIGINT)");
        assert_eq!(shown("-1d"), "-SAFE_CAST(1 AS DOUBLE)");
        assert_eq!(shown("1 + d"), "1 + d");
        assert_eq!(shown("1.50BD"), "SAFE_CAST(1.50 AS DECIMAL(3,2))");
        assert_eq!(shown("1e3"), "SAFE_CAST('1e3' AS DOUBLE)");
        assert_eq!(shown("1.5e2BD"), "SAFE_CAST(150 AS DECIMAL(3,0))");
        assert_eq!(shown("1.5e-2BD"), "SAFE_CAST(0.015 AS DECIMAL(3,3))");
        assert_eq!(shown("-128Y"), "SAFE_CAST('-128' AS TINYINT)");
        assert_eq!(shown("x - 127Y"), "x - SAFE_CAST(127 AS TINYINT)");
        assert_eq!(shown("12345678901234567890"), "SAFE_CAST('12345678901234567890' AS DECIMAL(20,0))");
        assert!(parse_expression("x - 128Y").unwrap_err().to_string().contains("INVALID_NUMERIC_LITERAL_RANGE"));
    }

    #[test]
    fn operators_bind_as_in_spark() {
        let shown = |sql| parse_expression(sql).unwrap().to_string();
        assert_eq!(shown("10 div a < 5"), "10 DIV a < 5");
        assert!(matches!(parse_expression("10 div a < 5").unwrap(), Expr::BinaryOp { op: BinaryOperator::Lt, .. }));
        let shift = parse_expression("1 << 2 + 3 & 4").unwrap();
        assert!(matches!(&shift, Expr::BinaryOp { op: BinaryOperator::BitwiseAnd, .. }), "{shift}");
        assert_eq!(shown("a >>> 1 + 1"), "__shift_right_unsigned(a, 1 + 1)");
        assert_eq!(shown("exists(a, x -> x > 1)"), "`exists`(a, x -> x > 1)");
    }

    #[test]
    fn texts_have_sparks_escapes() {
        let text = |sql: &str| match parse_expression(sql).unwrap() {
            Expr::Value(value) => value.value.into_string().unwrap(),
            other => panic!("{other} is no text"),
        };
        assert_eq!(text(r"'it\'s'"), "it's");
        assert_eq!(text("'it''s'"), "it's");
        assert_eq!(text(r"'a\tb\\c\x'"), "a\tb\\cx");
        assert_eq!(text(r"'\u0041\101\U0001F44D\0'"), "AA👍\0");
        assert_eq!(text(r"'\%\_'"), r"\%\_");
        assert_eq!(text(r"r'a\nb'"), r"a\nb");
        assert_eq!(text(r#"'a' "b'" 'c'"#), "ab'c");
    }

    #[test]
    fn an_expression_is_all_there_is() {
        assert!(parse_expression("a > 1 b").unwrap_err().to_string().contains("a predicate ends before `b`"));
        assert!(parse_expression("a >").is_err());
    }
}
