//! A read-only walk over the syntax tree of a query.
//!
//! sqlparser's visitors are generic, and each visitor type compiles the walk over the whole grammar
//! again, about 800 functions. Every read-only walk therefore goes through this one adapter.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, ObjectName, Query, Select, TableFactor, Visit, Visitor,
};
use datafusion::sql::sqlparser::tokenizer::Span;

/// Inspects the nodes of a syntax tree. Returning `Break(span)` ends the walk.
pub trait QueryVisitor {
    /// Called before the nodes of a query.
    fn query(&mut self, _query: &Query) -> ControlFlow<Span> {
        ControlFlow::Continue(())
    }

    /// Called after the nodes of a query.
    fn end_of_query(&mut self, _query: &Query) -> ControlFlow<Span> {
        ControlFlow::Continue(())
    }

    /// Called before the nodes of a SELECT.
    fn select(&mut self, _select: &Select) -> ControlFlow<Span> {
        ControlFlow::Continue(())
    }

    /// Called before the nodes of an item in FROM.
    fn table_factor(&mut self, _factor: &TableFactor) -> ControlFlow<Span> {
        ControlFlow::Continue(())
    }

    /// Called at the name of a relation.
    fn relation(&mut self, _name: &ObjectName) -> ControlFlow<Span> {
        ControlFlow::Continue(())
    }

    /// Called before the nodes of an expression.
    fn expr(&mut self, _expr: &Expr) -> ControlFlow<Span> {
        ControlFlow::Continue(())
    }
}

/// Walks over `query`; returns the span with which `visitor` ended the walk, if it did.
pub fn visit_query(query: &Query, visitor: &mut dyn QueryVisitor) -> Option<Span> {
    query.visit(&mut VisitorAdapter(visitor)).break_value()
}

/// Walks over one expression, as [`visit_query`] does over a query.
pub fn visit_expr(expr: &Expr, visitor: &mut dyn QueryVisitor) -> Option<Span> {
    expr.visit(&mut VisitorAdapter(visitor)).break_value()
}

/// The only implementation of sqlparser's visitor.
struct VisitorAdapter<'a>(&'a mut dyn QueryVisitor);

impl Visitor for VisitorAdapter<'_> {
    type Break = Span;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Span> {
        self.0.query(query)
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<Span> {
        self.0.end_of_query(query)
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Span> {
        self.0.select(select)
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Span> {
        self.0.table_factor(factor)
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<Span> {
        self.0.relation(relation)
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Span> {
        self.0.expr(expr)
    }
}
