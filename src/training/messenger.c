#include "messenger.h"

#include "signals.h"

_Static_assert(sizeof(struct event) <= COMM_MESSAGE_BYTES, "an event is one message");
static const struct event stop = {.kind = EVENT_STOP}, end = {.kind = EVENT_END};

/* To one leader after the other, as messages leave: no waiting here, since who waits already calls this. */
static void announce_stop(struct messenger *messenger)
{
    const int *leaders = messenger->leaders;
    while (*signals_stop_flag() && messenger->told < messenger->count &&
           (leaders[messenger->told] == 0 ||
            comm_try_send(messenger->world, leaders[messenger->told], &stop, sizeof stop)))
        messenger->told++;
}

/* World rank 0, while it trains or waits. */
static void serve(void *context)
{
    struct messenger *messenger = context;
    struct event event;
    while (comm_receive(messenger->world, &event, sizeof event)) {
        if (event.kind == EVENT_STOP)
            signals_request_stop();
        else if (event.kind == EVENT_END)
            messenger->ended++;
        else
            display_event(messenger->display, &event);
    }
    announce_stop(messenger);
}

void messenger_report(void *context, const struct event *event)
{
    struct messenger *messenger = context;
    if (comm_rank(messenger->world) == 0) {
        display_event(messenger->display, event);
        serve(messenger);
        return;
    }
    struct event order;
    if (event->kind == EVENT_STEP) /* progress only: dropped while the last message is on its way */
        comm_try_send(messenger->world, 0, event, sizeof *event);
    else
        comm_send(messenger->world, 0, event, sizeof *event);
    while (comm_receive(messenger->world, &order, sizeof order)) /* only stops come this way */
        signals_request_stop();
}

/* Any other rank that had a signal, while it waits: it has stopped this rank's group, or came after that had ended. */
static void pass_stop_on(void *context)
{
    struct messenger *messenger = context;
    if (messenger->told == 0 && *signals_stop_flag() && comm_try_send(messenger->world, 0, &stop, sizeof stop))
        messenger->told = 1;
}

/* A barrier does not wait for messages: the last of them may still be on their way. */
static bool have_all_ended(void *context)
{
    struct messenger *messenger = context;
    int others = 0;
    for (int i = 0; i < messenger->count; i++)
        others += messenger->leaders[i] != 0;
    serve(messenger);
    return messenger->ended >= others;
}

void messenger_wait(struct messenger *messenger, bool leader)
{
    bool first = comm_rank(messenger->world) == 0;
    if (leader && !first)
        comm_send(messenger->world, 0, &end, sizeof end);
    comm_barrier_serving(messenger->world, first ? serve : pass_stop_on, messenger);
    if (first)
        comm_wait(messenger->world, have_all_ended, messenger, "the last news of the other groups");
}
