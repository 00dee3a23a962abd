//! A `WITH` inside a query may give a name anew that one around it has given already. DataFusion knows each name once: the inner one gets
//! a name of its own.

use std::collections::HashSet;
use std::ops::ControlFlow;

use datafusion::common::DataFusionError;
use datafusion::sql::sqlparser::ast::{
    Ident, ObjectName, ObjectNamePart, Query, TableAlias, TableFactor, VisitMut, VisitorMut,
};

/// Renames what shadows another name.
#[derive(Default)]
pub(super) struct Shadowed {
    /// In lower case the names of the queries around, outermost first.
    around: Vec<HashSet<String>>,
    renamed: usize,
}

impl VisitorMut for Shadowed {
    type Break = DataFusionError;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<DataFusionError> {
        let ctes = query.with.iter().flat_map(|with| &with.cte_tables);
        self.around.push(ctes.map(|cte| cte.alias.name.value.to_lowercase()).collect());
        ControlFlow::Continue(())
    }

    // Those further inside are renamed already, and what reads them.
    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<DataFusionError> {
        self.around.pop();
        let Query { with: Some(with), body, .. } = query else { return ControlFlow::Continue(()) };
        for at in 0..with.cte_tables.len() {
            let name = with.cte_tables[at].alias.name.clone();
            if !self.around.iter().any(|names| names.contains(&name.value.to_lowercase())) {
                continue;
            }
            self.renamed += 1;
            let own = Ident::with_quote('`', format!("{}__{}", name.value, self.renamed));
            with.cte_tables[at].alias.name = own.clone();
            // Its own query and those before it mean the outer one.
            let mut rename = Rename { from: &name, to: &own };
            for later in &mut with.cte_tables[at + 1..] {
                let _ = later.query.visit(&mut rename);
            }
            let _ = body.visit(&mut rename);
        }
        ControlFlow::Continue(())
    }
}

/// Gives a table another name; its columns are still told by the old one.
struct Rename<'a> {
    from: &'a Ident,
    to: &'a Ident,
}

impl VisitorMut for Rename<'_> {
    type Break = ();

    fn pre_visit_table_factor(&mut self, table: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name: ObjectName(parts), alias, .. } = table
            && let [ObjectNamePart::Identifier(ident)] = parts.as_mut_slice()
            && ident.value.eq_ignore_ascii_case(&self.from.value)
        {
            let known_as = std::mem::replace(ident, self.to.clone());
            alias.get_or_insert(TableAlias { explicit: true, name: known_as, columns: vec![], at: None });
        }
        ControlFlow::Continue(())
    }
}
