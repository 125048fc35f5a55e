//! Rules that can be broken on purpose, so that simulations can show that they would notice. Only with the feature `mutations`; no build that serves has any of it.

use std::cell::Cell;

/// A rule, and how it is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A refused condition is answered without a record.
    RefusalUnrecorded,
    /// A refused condition is answered before its record is committed.
    RefusalUncommitted,
    /// Whoever gives records up trusts what was common when it was asked.
    DivergenceOfYesterday,
    /// A copy comes without the request ids.
    CopyWithoutRequests,
    /// A copy comes without the highest version.
    CopyWithoutHighest,
    /// A primary that is named again goes on as before, and answers those who waited.
    SamePrimaryGoesOn,
    /// The request ids of given-up records stay.
    GivenUpRequestsStay,
    /// A get does not wait for all that it saw.
    GetSeesUncommitted,
    /// A get does not ask whether the epoch stands.
    GetUnconfirmed,
    /// A new primary collects no fences.
    FencesUncollected,
    /// Messages of lower epochs are taken.
    LowerEpochsTaken,
    /// The fence is not kept on disk.
    FenceForgotten,
    /// A copy counts though the node has lost its memory.
    AmnesiacCounts,
    /// Given-up records leave their effects behind.
    DivergenceKept,
    /// Only the primary knows the request ids.
    RequestsAtPrimaryOnly,
    /// A record is taken whatever it follows.
    PredecessorUnchecked,
    /// Versions follow the clock alone.
    VersionsByClock,
    /// A primary is active before a record of its epoch is committed.
    ActiveAtOnce,
    /// Records of older epochs count as committed by their copies alone.
    OlderEpochsCount,
    /// A copy that has seen a higher version takes itself to hold the write.
    HigherVersionCounts,
    /// Versions do not tell of the epoch they were given in.
    VersionsWithoutEpoch,
    /// A copy that was away counts as level as before.
    AwayUnnoticed,
    /// A copy that was away is level by what comes unasked.
    UnaskedCounts,
    /// A primary that was away counts as level before a round has confirmed its epoch.
    LevelUnconfirmed,
    /// A primary tells where its log ends before a round has confirmed its epoch.
    ReadIndexUnconfirmed,
    /// Whom gossip does not hear has failed, whatever connections say.
    GossipDecides,
    /// That a node's report came does not show that there is a way.
    WordsIgnored,
    /// What gossip says elsewhere does not count.
    ElsewhereIgnored,
    /// A silent node is gone without having been asked.
    GoneUnasked,
    /// A shard has lost its majority when that seems failed, gone or not.
    FailedIsGone,
    /// The stop lease is granted whoever holds it, and whatever was judged.
    LeaseUncompared,
    /// The stop lease is granted by what was judged in an earlier topology.
    LeaseJudgedEarlier,
    /// The stop lease is given back as soon as its node answers.
    LeaseBackWhenAnswering,
}

thread_local! {
    static BROKEN: Cell<Option<Mutation>> = const { Cell::new(None) };
}

/// Breaks this rule from now on, in this thread; `None`: none.
pub fn set(mutation: Option<Mutation>) {
    BROKEN.set(mutation);
}

/// Whether this rule is broken.
pub(crate) fn is(mutation: Mutation) -> bool {
    BROKEN.get() == Some(mutation)
}
